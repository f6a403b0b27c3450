"""Every config of configs/: its docstring, two steps at full size in shapes, and a small one, killed and resumed."""

import concurrent.futures
import importlib
import json
import pathlib
import re
import shlex
import signal
import time

import numpy as np
import pytest
from config_runs import DEVICES, FSDP, ROOT, read, start_run, train_abstractly
from forked import processes, use_devices
from PIL import Image

from pixart_jax.config import check_config, default_config, flatten, read_config_file
from pixart_jax.conversion.runs import describe_run
from pixart_jax.data.synthetic import SyntheticSamples
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.warm_start.transitions import Choices, plan_transition
from tools.extract_features import make_parser

PATHS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "__init__"}
SIGMA = [name for name in PATHS if name.startswith("sigma_")]
KV = {"model.kv_compress_ratio": 2}


def docstring(name):
    # Read, not imported: as it is on disk, but with its continued lines joined.
    return re.sub(r"\\\n\s*", "", PATHS[name].read_text().split('"""')[1])


def commands(text):
    """(module, arguments) of every command in a docstring."""
    for line in text.splitlines():
        if match := re.search(r"python -m (\S+) (.*)", line):
            yield match[1], shlex.split(match[2])


def test_there_is_a_config_for_every_stage():
    stages = {"stage1_256", "stage2_256", "stage3_256", "stage3_512", "stage3_1024"}
    sigma = {"sigma_256", "sigma_512", "sigma_1024", "sigma_2k", "sigma_4k"}
    assert stages | sigma | {"finetune_alpha_1024", "finetune_sigma_1024", "quickstart"} <= PATHS.keys()


@pytest.mark.parametrize("name", PATHS)
def test_docstring_says_what_to_run_and_what_it_costs(name):
    text, config = docstring(name), read_config_file(str(PATHS[name]))
    wanted = ("Data", "Run", "Cost", "Expected")
    if not config.model.hidden_size:
        wanted += ("Hardware", "Batch")
        batch = re.search(r"^Batch: ([\d,]+)", text, re.M)[1]
        assert int(batch.replace(",", "")) == config.data.batch_size
        steps = re.search(r"([\d,]+) steps", text)[1]
        assert int(steps.replace(",", "")) == config.train.num_steps
    for field in wanted:
        assert re.search(rf"^{field}: ", text, re.M), f"{name}: no line {field}:"
    run = next(arguments for module, arguments in commands(text) if module == "pixart_jax.main")
    assert run[:2] == [f"--config=configs/{name}.py", f"--workdir=runs/{name}"]


@pytest.mark.parametrize("name", [*PATHS, "stages"])
def test_commands_name_what_exists(name):
    text = docstring(name) if name in PATHS else (ROOT / "pixart_jax" / "config" / "stages.py").read_text()
    known = flatten(default_config())
    for key in re.findall(r"--config\.([\w.]+)=", text):
        assert key in known, key
    for module, arguments in commands(text):
        assert importlib.util.find_spec(module), module
        if module == "tools.extract_features":
            args = make_parser().parse_args(arguments)
            source = read_config_file(str(PATHS[name])).data.source
            resolution = read_config_file(str(PATHS[name])).model.resolution
            assert resolution in args.resolution
            several = len(args.resolution) > 1
            assert pathlib.Path(source) == (args.out / str(resolution) if several else args.out)


@pytest.mark.parametrize("name", PATHS)
def test_settings_are_sound(name):
    config = read_config_file(str(PATHS[name]))
    check_config(config)
    # Chains end at an existing config, or at weights that the docstring converts.
    start = config.init_from
    assert not start or start.removeprefix("runs/") in PATHS or f" {start}" in docstring(name)


def test_position_scales_and_text_are_the_references():
    def of(name):
        model = read_config_file(str(PATHS[name])).model
        return model.position_scale, model.max_text_tokens

    assert [of(f"stage3_{n}") for n in (256, 512, 1024)] == [(1, 120), (1, 120), (2, 120)]
    assert [of(f"sigma_{n}") for n in (256, 512, 1024, "2k", "4k")] == [(s, 300) for s in (0.5, 1, 2, 4, 8)]


# ------------------------------------------------------------------------------------------- At full size, in shapes.


@pytest.fixture(scope="module")
def worker():
    devices = {"initializer": use_devices, "initargs": [DEVICES]}
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes, **devices) as pool:
        yield pool


FULL_SIZE = [(name, {}) for name in PATHS] + [(name, KV) for name in SIGMA]
# Compiled too, which takes ten times as long as all else: the one with the most in it.
COMPILED = [("sigma_512", KV)]


@pytest.mark.parametrize("name,settings", FULL_SIZE, ids=lambda value: value if isinstance(value, str) else str(value))
def test_two_steps_at_full_size_in_shapes(worker, name, settings):
    is_compiled = (name, settings) in COMPILED
    figures = worker.submit(train_abstractly, name, settings, is_compiled).result()
    if not read_config_file(str(PATHS[name])).model.hidden_size:
        assert figures["params"] == pytest.approx(675e6 if name == "stage1_256" else 611e6, rel=0.01)
        # Vectors are whole on every device; they are few.
        assert figures["state_bytes"] == pytest.approx(figures["whole_state_bytes"] / FSDP, rel=0.01)
    if is_compiled:
        # But for a few bytes that the step does not read, such as Σ's micro-conditions.
        expected = figures["state_bytes"] + figures["batch_bytes"]
        assert figures["argument_bytes"] == pytest.approx(expected, rel=1e-3)
        # Donated: the new state lies where the old one was.
        assert figures["alias_bytes"] == pytest.approx(figures["state_bytes"], rel=1e-3)


@pytest.mark.parametrize("name", [n for n in PATHS if read_config_file(str(PATHS[n])).init_from.startswith("runs/")])
def test_a_stage_can_start_from_the_one_before(name):
    """At full size, by names and shapes."""
    before = read_config_file(str(PATHS[name])).init_from.removeprefix("runs/")
    source, target = describe(before), describe(name)
    choices = read(name, {}).init
    transition = plan_transition(
        source, target, Choices(choices.reparameterize, choices.unconditional, choices.kv_compress, seed=0)
    )
    fresh = {row.path for row in transition.rows if row.action == "made"}
    copied = {row.path for row in transition.rows if row.action == "copied"}
    assert {"x_embedder/kernel", "t_embedder/mlp_0/kernel"} <= copied and any("attn" in path for path in copied)
    if name in ("stage2_256", "mini_stage2"):
        assert any("cross_attn" in path for path in fresh)
    elif name in ("stage3_1024", "mini_stage3"):
        assert fresh and all(path.startswith(("csize_embedder", "ar_embedder")) for path in fresh)
    else:
        assert all("y_embedding" in path for path in fresh)


def describe(name):
    config = read(name, {})
    return describe_run(config, SyntheticSamples(batch_spec(config), config.model.resolution).manifest, {})


# ------------------------------------------------------------------------------------------------- Small, for real.


@pytest.mark.parametrize(
    "name,settings",
    [(name, {}) for name in PATHS] + [("sigma_1024", KV)],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_a_small_one_trains_is_killed_resumes_and_samples(tmp_path, name, settings):
    process = start_run(name, settings, tmp_path)
    # A checkpoint of step 2, and at least a step behind it.
    wait_until(lambda: (tmp_path / "checkpoints" / "2").is_dir() and len(rows(tmp_path)) > 2, process, tmp_path)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had ended before it could be killed"
    assert not (tmp_path / "samples.png").exists()
    before = rows(tmp_path)

    is_text = not read(name, {}).model.num_classes
    process = start_run(name, settings, tmp_path, prompt="a red house" if is_text and settings else "")
    process.join(240)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0, log[-5000:]
    assert re.search("going on from step [24]", log)
    after = rows(tmp_path)
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    # Bit-identical: what was behind the checkpoint has been done twice.
    assert after[: len(before)] == before
    assert all(np.isfinite(row["loss"]) for row in after)
    drawn = [tmp_path / "samples.png", *tmp_path.glob("generated/0*.png")]
    assert len(drawn) == 1 + bool(settings)
    for picture in drawn:
        assert np.asarray(Image.open(picture)).std() > 0


def rows(workdir):
    """The rows of metrics.jsonl that are whole, without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    names = ("step", "loss", "mse", "vb", "grad_norm", "learning_rate")
    return [{name: row[name] for name in names} for row in map(json.loads, (s for s in lines if s.endswith("\n")))]


def wait_until(condition, process, workdir, timeout=240):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.is_alive(), (workdir / "log").read_text()[-5000:]
        assert time.monotonic() < deadline, (workdir / "log").read_text()[-5000:]
        time.sleep(0.005)
