"""Every config of configs/, shrunken, is one of nine that train and sample for real; three are killed and resumed."""

import json
import signal
import time

import numpy as np
import pytest
from config_runs import KV, PATHS, SHRUNKEN, read, start_run
from PIL import Image

from pixart_jax.config import flatten

# The configs that run, each with those that are the same run once they are shrunken.
GROUPS = {
    "stage1_256": (),
    "stage2_256": ("stage3_256", "stage3_512"),
    "stage3_1024": ("finetune_alpha_1024", "finetune_small_alpha", "dreambooth_alpha_1024"),
    "sigma_256": (
        *("sigma_512", "sigma_1024", "sigma_2k", "sigma_4k"),
        *("finetune_sigma_1024", "finetune_small_sigma", "dreambooth_sigma_1024"),
    ),
    "mini_stage1": (),
    "mini_stage2": (),
    "mini_stage3": (),
    "quickstart": (),
}
# Trained in tests/generation/test_lora_drawing.py, tests/training/test_controlnet_runs.py and test_distillation.py; the
# fast ones' settings, all together, in tests/tools/test_recipe.py; the gallery in tests/tools/test_gallery.py, and at
# 256 px it differs in sizes.
ADAPTED = (
    *("lora_sigma_512", "controlnet_alpha_1024", "controlnet_sigma_512"),
    *(f"lcm_{kind}{family}_{size}" for kind in ("", "lora_") for family in ("alpha", "sigma") for size in (512, 1024)),
    *("dmd_alpha_512", "dmd_sigma_512"),
    *(f"fast_{family}_{size}" for family in ("alpha", "sigma") for size in (256, 512, 1024)),
    *("gallery", "gallery_256"),
)
# They change no program and nothing that a run does: numbers, and what only a run heeds that starts from weights, or
# evaluates, which none of these does. Of the average's warm-up the demo runs with, and the stages without.
INDIFFERENT = {
    "model.position_scale",
    "data.text_drop_prob",
    "optimizer.lr_scaling",
    "train.ema_decay",
    "train.ema_warmup",
    "init.null_text",
    "eval.every",
    "eval.num_samples",
}
# Among them both precisions, both optimizers, classes and captions, micro-conditions, compressed keys, either schedule.
KILLED = [("stage1_256", {}), ("mini_stage3", {}), ("sigma_1024", KV)]
UNHARMED = [(name, {}) for name in GROUPS if (name, {}) not in KILLED]


def label(value):
    return value if isinstance(value, str) else str(value)


def test_every_config_is_one_of_those_that_run():
    def essence(name):
        values = flatten(read(name, SHRUNKEN))
        assert values.keys() >= INDIFFERENT
        return {key: value for key, value in values.items() if key not in INDIFFERENT}

    runs = {name: essence(name) for name in GROUPS}
    found = {name: [run for run, values in runs.items() if values == essence(name)] for name in PATHS}
    # Each in one group, and in no other.
    groups = {name: [run] for run, alike in GROUPS.items() for name in (run, *alike)}
    assert found == groups | {name: [] for name in ADAPTED}


@pytest.mark.parametrize("name,settings", UNHARMED, ids=label)
def test_a_small_one_trains_and_samples(tmp_path, name, settings):
    run_to_the_end(name, settings, tmp_path)
    assert (tmp_path / "checkpoints" / "4").is_dir()


@pytest.mark.parametrize("name,settings", KILLED, ids=label)
def test_a_small_one_is_killed_resumes_and_samples(tmp_path, name, settings):
    # It waits for its last batch; a checkpoint of step 2, and a step behind it.
    process = start_run(name, settings, tmp_path, block_at=4)
    wait_until(lambda: (tmp_path / "checkpoints" / "2").is_dir() and len(rows(tmp_path)) > 2, process, tmp_path)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "samples.png").exists()
    before = rows(tmp_path)

    is_text = not read(name, {}).model.num_classes
    log = run_to_the_end(name, settings, tmp_path, prompt="a red house" if is_text and settings else "")
    assert "going on from step 2 " in log
    # Bit-identical: what was behind the checkpoint has been done twice.
    assert rows(tmp_path)[: len(before)] == before
    pictures = list(tmp_path.glob("generated/0*.png"))
    assert len(pictures) == bool(settings)
    for picture in pictures:
        assert np.asarray(Image.open(picture)).std() > 0


def run_to_the_end(name, settings, workdir, prompt=""):
    """All steps finite and samples drawn; returns what this run, and those before it in the workdir, printed."""
    process = start_run(name, settings, workdir, prompt)
    process.join(600)
    log = (workdir / "log").read_text()
    assert process.exitcode == 0, log[-5000:]
    found = rows(workdir)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in found)
    assert np.asarray(Image.open(workdir / "samples.png")).std() > 0
    return log


def rows(workdir):
    """The rows of metrics.jsonl that are whole, without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    names = ("step", "loss", "mse", "vb", "grad_norm", "learning_rate")
    return [{name: row[name] for name in names} for row in map(json.loads, (s for s in lines if s.endswith("\n")))]


def wait_until(condition, process, workdir, timeout=600):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.is_alive(), (workdir / "log").read_text()[-5000:]
        assert time.monotonic() < deadline, (workdir / "log").read_text()[-5000:]
        time.sleep(0.005)
