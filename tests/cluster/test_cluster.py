"""Several real processes as one run: the losses of a single one, whatever their number; what they refuse to begin."""

import re
import time

import numpy as np
import pytest
from classifier_weights import write_efficientnet
from cluster_runs import start
from PIL import Image
from tiny_run import read_metrics

from pixart_jax.files.locks import hold
from pixart_jax.training.plan import LOCK_FILE


def test_four_then_two_then_one_have_the_losses_of_one(root, tmp_path):
    weights = write_efficientnet(root / "lite0.pth")
    whole = [f"--config.eval.source={root / 'held_out'}", "--config.eval.every=4", "--config.sample.every=4"]
    whole += ["--config.eval.metrics=kid", "--config.eval.network=efficientnet-lite0", "--config.eval.num_pictures=6"]
    whole += [f"--config.eval.network_weights={weights}", "--config.eval.reference_pictures=6"]
    whole += ["--config.eval.metrics_every=4"]
    start(root, tmp_path / "one", 1, *whole).finish(0)
    expected = read_metrics(tmp_path / "one")
    shared = tmp_path / "shared"
    for num_processes, last, settings in (
        # No process has all parameters, nor all tokens of an image: what is drawn, evaluated and saved passes between
        # them.
        (4, 4, [*whole, "--config.mesh.fsdp=2", "--config.mesh.context=2"]),
        (2, 8, []),
        (1, 12, []),
    ):
        outputs = start(root, shared, num_processes, f"--config.train.num_steps={last}", *settings).finish(0)
        assert ("going on from step" in outputs[0]) == (num_processes < 4)
    found = read_metrics(shared)
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [*range(1, 13)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    ours, theirs = (read_metrics(tmp_path / name, "eval.jsonl")[:2] for name in ("shared", "one"))
    assert [row["step"] for row in ours] == [0, 4]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    # Of pictures in which a value may differ by one, of which there are few.
    ours, theirs = (read_metrics(tmp_path / name, "quality.jsonl")[:2] for name in ("shared", "one"))
    assert [row["step"] for row in ours] == [0, 4]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    pictures = [
        np.asarray(Image.open(tmp_path / name)) for name in ("shared/samples.png", "one/samples/step_0000004.png")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        ["--config.adapter.kind=controlnet", "--config.adapter.controlnet.num_copies=1"],
        # A LoRA of the model that is distilled, which is held as the teacher too.
        ["--config.adapter.kind=lora", "--config.adapter.lora.rank=2", "--config.objective.kind=consistency"],
        # A student and the network that follows it, which take turns, on batches half of which are pairs.
        [
            *("--config.objective.kind=distribution_matching", "--config.objective.distance=l2"),
            *("--config.sample.sampler=dmd", "--config.sample.num_steps=1", "--config.objective.fake_updates=2"),
            "--config.data.pair_source={root}/pairs",
        ],
    ],
    ids=["controlnet", "lcm-lora", "dmd"],
)
def test_what_is_trained_beside_frozen_weights_has_the_losses_of_one(root, tmp_path, settings):
    """Two processes hold half of the frozen weights each; one goes on alone, and reads them again."""
    # The program of the other runs here, which is compiled once.
    start(root, tmp_path / "base", 1).finish(0)
    settings = [setting.format(root=root) for setting in settings]
    settings += [f"--config.init_from={tmp_path / 'base'}", "--config.train.checkpoint_every=100"]
    settings += [f"--config.data.source={root / 'controlled'}"]
    start(root, tmp_path / "one", 1, *settings, "--config.train.num_steps=4").finish(0)
    two = [*settings, "--config.train.num_steps=2"]
    start(root, tmp_path / "shared", 2, *two, "--config.mesh.fsdp=2").finish(0)
    start(root, tmp_path / "shared", 1, *settings, "--config.train.num_steps=4").finish(0)
    found, expected = (read_metrics(tmp_path / name) for name in ("shared", "one"))
    for name in {"loss", "fake", "dm", "regression"} & set(expected[0]):
        ours, theirs = ([row[name] for row in rows] for rows in (found, expected))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7) and len(ours) == 4, name
    assert min(row["loss"] for row in found) > 1e-5


def test_processes_that_differ_are_refused_with_what_differs(root, tmp_path):
    own = {1: ["--config.seed=1", "--config.optimizer.learning_rate=0.5"]}
    for output in start(root, tmp_path / "run", 2, own=own).finish(2):
        assert "config.seed: 0 on process 0 (" in output and "; 1 on process 1 (" in output
        assert "config.optimizer.learning_rate: 0.003 on process 0" in output
        assert "config.model.depth" not in output and "Traceback" not in output


def test_what_one_process_lacks_stops_all(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folders = {0: root, 1: tmp_path / "elsewhere"}
    outputs = start(root, tmp_path / "run", 2, "--config.data.source=data", folders=folders).finish(2)
    assert "error: process 1 on " in outputs[0] and "error: data" in outputs[1]
    assert all("extract_features" in output for output in outputs), outputs


def test_a_workdir_that_is_not_shared(root, tmp_path):
    own = {1: [f"--workdir={tmp_path / 'other'}"]}
    outputs = start(root, tmp_path / "run", 2, own=own).finish(2)
    assert all("name a folder on a file system that all hosts share" in output for output in outputs)
    assert not list((tmp_path / "run").iterdir())


def test_a_workdir_that_another_run_has_is_refused_to_all(root, tmp_path):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run" / LOCK_FILE, "the other run"):
        for output in start(root, tmp_path / "run", 2).finish(2):
            assert re.search(r"error: .*--workdir=.*/run is being written by another process", output), output
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_others_that_do_not_come_are_not_awaited_for_ever(root, tmp_path):
    for absent in (0, 1):
        options = {"absent": (absent,), "own": {1 - absent: ["--join_timeout=3"]}}
        run = start(root, tmp_path / "run", 2, **options)
        begin = time.monotonic()
        outputs = run.finish(*((None, 2) if absent == 0 else (2, None)))
        assert time.monotonic() - begin < 30
        assert "not all came within 3 s" in outputs[1 - absent], outputs
