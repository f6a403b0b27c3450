"""Imports point down only, and the core runs where nothing but jax, flax, optax, einops and numpy is installed."""

import ast
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pixart_jax"

# Lowest first; a package, or a module of the root, may import what stands on its own floor or below.
FLOORS = [
    ["commands", "errors", "files", "interrupts", "rng", "tokens"],
    ["devices", "cluster", "diffusion", "optimizers", "figures"],
    ["samplers", "models"],
    ["data", "config", "checkpoints", "objectives", "adapters", "shortcuts"],
    ["conversion"],
    ["warm_start", "encoding", "evaluators"],
    ["training", "generation"],
    ["main", "studio", "hub"],
]
# What runs where only jax, flax, optax, einops and numpy are installed: packages, and single modules of others.
CORE = [
    "models", "diffusion", "samplers", "objectives", "adapters", "shortcuts", "optimizers", "devices", "config",
    "errors", "tokens", "rng", "files", "interrupts", "checkpoints.state", "checkpoints.checksums",
    "training.step", "training.flops", "training.memory", "training.program",
]  # fmt: skip
CORE_MAY_IMPORT = {"jax", "flax", "optax", "einops", "numpy", "pixart_jax"} | set(sys.stdlib_module_names)


@functools.cache
def modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    }


@functools.cache
def parsed(path):
    # Python 3.11 may give up where a collection of garbage runs code while it builds the tree.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def imports(path):
    """(name of the imported module, whether the import is inside a try that catches ImportError)."""
    tree = parsed(path)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.Try) and any(getattr(h.type, "id", "") == "ImportError" for h in block.handlers)
        for node in block.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, id(node) in guarded


def own_imports(module):
    """Modules of the package that a module imports, without the package's name; also such as `from a import module`."""
    for node in ast.walk(parsed(modules()[module])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pixart_jax":
            base = node.module.removeprefix("pixart_jax").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in modules() else base or "__init__"


def floor(module):
    return next(i for i, names in enumerate(FLOORS) if module.split(".")[0] in names)


def is_core(module):
    return any(module == name or module.startswith(f"{name}.") for name in CORE)


def test_every_room_has_a_floor_and_few_modules_lie_loose():
    rooms = {module.split(".")[0] for module in modules()}
    assert rooms <= {name for names in FLOORS for name in names}
    assert len(list(PACKAGE.glob("*.py"))) - 1 <= 6


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    for imported in own_imports(module):
        if imported != "__init__":
            assert floor(imported) <= floor(module), f"{module} imports {imported}, which lies above it"


def circle(edges):
    """Names that import one another in a circle, or None. edges: name -> names."""
    state = {}

    def visit(name, trail):
        if state.get(name) == "done":
            return None
        if name in trail:
            return [*trail[trail.index(name) :], name]
        for other in sorted(edges.get(name, ())):
            if found := visit(other, [*trail, name]):
                return found
        state[name] = "done"
        return None

    return next((found for name in sorted(edges) if (found := visit(name, []))), None)


def test_no_rooms_and_no_modules_import_one_another():
    by_module = {module: {other for other in own_imports(module) if other != module} for module in modules()}
    rooms = {}
    for module, others in by_module.items():
        room = module.split(".")[0]
        rooms.setdefault(room, set()).update({other.split(".")[0] for other in others} - {room})
    assert circle(rooms) is None
    assert circle(by_module) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_samplers_and_diffusion_import_no_model():
    for module in modules():
        if module.split(".")[0] in ("samplers", "diffusion"):
            assert not any(imported.split(".")[0] == "models" for imported in own_imports(module)), module


@pytest.mark.parametrize("module", [m for m in modules() if is_core(m)])
def test_the_core_imports_only_what_accelerator_images_have(module):
    foreign = {name for name, guarded in imports(modules()[module]) if not guarded}
    assert {name.split(".")[0] for name in foreign} <= CORE_MAY_IMPORT


def test_the_core_imports_only_the_core():
    for module in filter(is_core, modules()):
        for imported in own_imports(module):
            assert is_core(imported), f"{module} imports {imported}"


BENCH = """
import sys
BLOCKED = ("grain", "clu", "ml_collections", "tensorflow", "tensorflow_datasets", "orbax", "array_record", "absl",
           "transformers", "tokenizers", "torch", "PIL", "matplotlib")
# flax imports orbax and others on its own where they are installed; only our own imports are refused.
class Refuse:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while caller and "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        if name.split(".")[0] in BLOCKED and caller and ("pixart_jax" in caller.f_code.co_filename
                                                         or "tools" in caller.f_code.co_filename):
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Refuse())
from tools.bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_bench_runs_on_the_core_alone():
    arguments = ["--what=train", "--config=configs/quickstart.py", "--steps=2", "--config.data.batch_size=2"]
    process = subprocess.run(
        [sys.executable, "-c", BENCH, *arguments, "--config.model.depth=2", "--config.model.scan_unroll=1"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    figures = json.loads(process.stdout)
    assert figures["images_per_second"] > 0 and figures["compile_seconds"] > 0
    # Two blocks of width 192 over 2·16 tokens: 6 FLOPs per weight and token, within the sum of what else there is.
    assert 0.05e9 < figures["model_flops"] < 1e9
    assert figures["model_flops_per_second"] == pytest.approx(figures["model_flops"] / figures["seconds"])
    assert figures["peak_bytes"] >= figures["argument_bytes"] > 0 and figures["peak_bytes_of"] == "compiler"
    assert 0 < figures["seconds_min"] <= figures["seconds"] <= figures["seconds_max"] and figures["rounds"] == 3
    assert (figures["peer"], figures["ratio"], figures["peer_missing"]) == (None, None, "torch")
