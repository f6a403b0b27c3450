"""Imports point down only, and the core runs where nothing but jax, flax, optax, einops and numpy is installed."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pixart_jax"

# Lowest first; a module may import its own layer and those below.
LAYERS = [
    [
        "errors",
        "tokens",
        "rng",
        "captions",
        "files",
        "words",
        "hardware",
        "offload",
        "checksums",
        "watchdog",
        "cluster",
        "save_errors",
    ],
    ["diffusion"],
    ["models", "samplers", "optimizers", "sharding", "data", "conversion", "train_state", "images", "charts"],
    [
        "losses",
        "train_step",
        "features",
        "evaluators",
        "checkpoints",
        "config",
        "history",
        "metrics",
        "prompts",
        "record",
        "sampling",
        "pretrained",
        "flops",
        "runs",
        "warm_start",
        "agreement",
        "ending",
        "preemption",
    ],
    ["extraction"],
    ["online"],
    ["assembly"],
    ["generate", "previews"],
    ["train"],
    ["main"],
]
CORE = [
    "models", "diffusion", "samplers", "losses", "optimizers", "sharding", "train_state", "train_step", "config",
    "flops", "hardware", "offload",
]  # fmt: skip
CORE_MAY_IMPORT = {"jax", "flax", "optax", "einops", "numpy", "pixart_jax"} | set(sys.stdlib_module_names)


def modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    }


def imports(path):
    """(name of the imported module, whether the import is inside a try that catches ImportError)."""
    tree = ast.parse(path.read_text())
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


def layer(module):
    return next(i for i, names in enumerate(LAYERS) if module.split(".")[0] in names)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    for name, _ in imports(modules()[module]):
        if name.startswith("pixart_jax."):
            imported = name.removeprefix("pixart_jax.")
            assert layer(imported) <= layer(module), f"{module} imports {imported}, which lies above it"


def test_samplers_and_diffusion_import_no_model():
    for module, path in modules().items():
        if module.split(".")[0] in ("samplers", "diffusion"):
            assert not any("models" in name for name, _ in imports(path)), module


@pytest.mark.parametrize("module", [m for m in modules() if m.split(".")[0] in CORE])
def test_the_core_imports_only_what_accelerator_images_have(module):
    foreign = {name for name, guarded in imports(modules()[module]) if not guarded}
    assert {name.split(".")[0] for name in foreign} <= CORE_MAY_IMPORT


def test_the_core_imports_only_the_core():
    for module, path in modules().items():
        if module.split(".")[0] in CORE:
            for name, _ in imports(path):
                if name.startswith("pixart_jax."):
                    assert name.split(".")[1] in [*CORE, "errors", "tokens", "rng", "files"], f"{module} imports {name}"


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
