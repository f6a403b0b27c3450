"""The averaged parameters: a run keeps the way it began with, and says so where they hardly follow."""

import re
import types

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, write_data

from pixart_jax.training.beginning import Beginning, warn_of_lag
from pixart_jax.training.loop import train_and_evaluate


def train(data, workdir, num_steps, warmup):
    config = tiny_config(data)
    config.sample.every = 0
    config.train.update({"num_steps": num_steps, "checkpoint_every": 4, "ema_warmup": warmup})
    return train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(data, averages of a run of eight steps by whether it had a warm-up)."""
    root = tmp_path_factory.mktemp("average")
    data = write_data(root / "data")
    return data, {warmup: train(data, root / str(warmup), 8, warmup).ema_params for warmup in (True, False)}


@pytest.mark.parametrize("begun", ["with", "without", "before there was one"])
def test_a_run_goes_on_as_it_began(whole, tmp_path, begun, monkeypatch, caplog):
    (data, averages), warmup, progress = whole, begun == "with", Beginning.progress

    def progress_of_before(*args):
        return {name: value for name, value in progress(*args).items() if name != "ema_warmup"}

    with monkeypatch.context() as patch:
        if begun == "before there was one":
            patch.setattr(Beginning, "progress", progress_of_before)
        train(data, tmp_path, 4, warmup)
    caplog.clear()
    found = train(data, tmp_path, 8, not warmup)
    jax.tree.map(np.testing.assert_array_equal, found.ema_params, averages[warmup])
    assert f"config.train.ema_warmup = {not warmup}: this run began with {warmup}" in caplog.text
    assert ("after 8 steps the averaged weights" in caplog.text) == (not warmup)


def test_a_run_with_a_warm_up_has_another_average(whole):
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *whole[1].values())
    assert max(jax.tree.leaves(differences)) > 1e-4


@pytest.mark.parametrize(
    "decay,warmup,steps,said",
    [
        (0.9999, False, 100, r"after 100 steps .* still to 99.0 % .* decay of at most 0.977;"),
        (0.9999, False, 20_000, r"still to 13.5 %"),
        (0.9, False, 12, r"still to 28.2 %"),
        (0.9999, True, 100, None),
        (0.9999, False, 100_000, None),
        (0.5, False, 12, None),
    ],
)
def test_an_average_that_hardly_follows_is_told(decay, warmup, steps, said, caplog):
    config = types.SimpleNamespace(train=types.SimpleNamespace(ema_decay=decay))
    warn_of_lag(types.SimpleNamespace(config=config, last=steps), warmup)
    assert bool(caplog.records) == (said is not None)
    if said:
        assert "config.train.ema_warmup=True" in caplog.text and re.search(said, caplog.text)
