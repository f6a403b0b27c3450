"""A run that goes on deletes checkpoints while they are read: whoever draws from it takes the newest there is then."""

import contextlib
import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.conversion.runs import load_run
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program
from tools import convert


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a short run, and its config."""
    root = tmp_path_factory.mktemp("rotation")
    config = tiny_config(write_words_data(root / "data"))
    config.train.update({"num_steps": 1, "checkpoint_every": 1})
    config.sample.every = 0
    train_and_evaluate(config, root / "run")
    return root / "run", config


@pytest.fixture
def run(trained, tmp_path):
    """A copy of its workdir, and what lets the run save so many more checkpoints, of which it keeps one."""
    workdir, config = shutil.copytree(trained[0], tmp_path / "run"), trained[1]
    state, _ = Program(config, make_mesh()).birth.fresh()
    with contextlib.closing(Checkpoints(workdir, keep=1)) as writer:

        def save(count=1):
            for _ in range(count):
                step = np.int32(writer.latest_step + 1)
                counter = jax.device_put(step, state.step.sharding)
                ema_params = jax.tree.map(lambda leaf, value=step: leaf * 0 + value, state.params)
                writer.save(state.replace(step=counter, ema_params=ema_params), {})
                writer.wait()

        save()
        yield workdir, save


def when_restoring(monkeypatch, item, act, times=1):
    """Calls `act` when Orbax is about to read an item of a checkpoint, the first so many times."""
    restore, left = ocp.CheckpointManager.restore, [times]

    def acting(self, step, *, args=None, **kwargs):
        if item in dict(args.items()) and left[0]:
            left[0] -= 1
            act()
        return restore(self, step, args=args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", acting)


def value_of(params) -> float:
    values = np.unique(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
    assert len(values) == 1  # of one checkpoint
    return float(values[0])


@pytest.mark.parametrize("item", ["progress", "ema_params"])
@pytest.mark.parametrize(("saves", "times"), [(1, 1), (2, 1), (1, 3)])
def test_the_newest_is_looked_for_again(run, monkeypatch, capfd, caplog, item, saves, times):
    workdir, save = run
    pipeline = TextToImage.from_checkpoint(workdir)
    assert pipeline.parts.step() == 2
    when_restoring(monkeypatch, item, lambda: save(saves), times)
    with caplog.at_level(logging.WARNING):
        assert value_of(pipeline.parts.weights()) == pipeline.parts.step() == 2 + saves * times
    assert "was replaced while it was read; looking again" in caplog.text
    assert "damaged" not in caplog.text and "Traceback" not in capfd.readouterr().err


def test_between_opening_and_drawing(run):
    workdir, save = run
    pipeline = TextToImage.from_checkpoint(workdir)
    save(2)
    assert value_of(pipeline.parts.weights()) == 4


def test_all_pictures_are_of_one_checkpoint(run):
    workdir, save = run
    pipeline = TextToImage.from_checkpoint(workdir)
    settings = {"num_steps": 2, "seed": 1}
    first = pipeline(CAPTIONS[:2], **settings)
    save(2)
    np.testing.assert_array_equal(pipeline(CAPTIONS[:2], **settings), first)
    assert pipeline.parts.step() == 2


def test_one_that_is_damaged_still_is(run, monkeypatch):
    workdir, _ = run
    for path in (workdir / "checkpoints/2/ema_params").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=r"checkpoints/2 is damaged: .*the run has no other checkpoint"):
        TextToImage.from_checkpoint(workdir).parts.weights()


def test_one_that_is_replaced_for_ever(run, monkeypatch):
    workdir, save = run
    monkeypatch.setattr("pixart_jax.checkpoints.checkpoints._LOOKS", 3)
    pipeline = TextToImage.from_checkpoint(workdir)
    when_restoring(monkeypatch, "ema_params", save, 100)
    with pytest.raises(InputError, match=r"replaced its newest checkpoint 3 times.*config.train.keep_checkpoints"):
        pipeline.parts.weights()


@pytest.mark.parametrize("times", [1, 3])
def test_conversion_opens_the_newest(run, monkeypatch, times):
    workdir, save = run
    when_restoring(monkeypatch, "progress", save, times)
    weights = load_run(workdir, ema=True)
    assert weights.stored.provenance["weights"] == f"ema_params of step {2 + times}"
    assert value_of([weights.read(path) for path in weights.paths]) == 2 + times


def test_conversion_says_what_has_happened(run, tmp_path, monkeypatch, capsys):
    workdir, save = run
    weights = load_run(workdir, ema=True)
    save(2)
    with pytest.raises(InputError, match=r"has deleted the checkpoint of step 2.*same command again"):
        [weights.read(path) for path in weights.paths]
    assert convert.main([str(workdir), str(tmp_path / "out")]) == 0
