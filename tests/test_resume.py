"""A run that is killed, again and again, ends bit-identical to one that never was; so are losses on 8 devices."""

import random
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import finish, read_metrics, start_main, tiny_config, write_config, write_data

from pixart_jax.config import flatten, load_config
from pixart_jax.preemption import exit_code

STEPS = 400
# Not multiples of one another, so that kills fall into every phase of logging and saving.
SETTINGS = (
    f"--config.train.num_steps={STEPS}",
    "--config.train.log_every=7",
    "--config.train.checkpoint_every=11",
    "--config.sample.every=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config file, workdir of a run that was never interrupted)."""
    root = tmp_path_factory.mktemp("resume")
    config = write_config(root / "config.py", write_data(root / "data"))
    finish(start_main(config, root / "clean", *SETTINGS))
    return config, root / "clean"


def load_arrays(workdir, step):
    names = ("params", "ema_params", "opt_state")
    checkpointer = ocp.StandardCheckpointer()
    return {name: checkpointer.restore(workdir / "checkpoints" / str(step) / name) for name in names}


def assert_identical(workdir, clean):
    ours, theirs = load_arrays(workdir, STEPS), load_arrays(clean, STEPS)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert read_metrics(workdir) == read_metrics(clean)


def wait_for_step(workdir, step, process, timeout=120):
    """Waits until a step at or after `step` was logged; False if the process ended before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            if read_metrics(workdir)[-1]["step"] >= step:
                return True
        except (FileNotFoundError, IndexError, ValueError):
            pass
        time.sleep(0.002)
    raise AssertionError(f"no step {step} within {timeout} s")


def test_sigkill_at_random_moments(run, tmp_path):
    config, clean = run
    rng = random.Random(7)
    kills = 0
    for moment in (7, 90, 210, 330):
        process = start_main(config, tmp_path, *SETTINGS)
        if wait_for_step(tmp_path, moment + rng.randrange(20), process):
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 3
    finish(start_main(config, tmp_path, *SETTINGS))
    assert_identical(tmp_path, clean)


def test_sigterm_saves_and_the_same_command_goes_on(run, tmp_path):
    config, clean = run
    process = start_main(config, tmp_path, *SETTINGS)
    assert wait_for_step(tmp_path, 100, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, exit_code(signal.SIGTERM))
    assert "SIGTERM: stopped at step" in output
    output = finish(start_main(config, tmp_path, *SETTINGS))
    assert "going on from step" in output
    assert_identical(tmp_path, clean)


def test_finished_run_only_draws_its_end_again(run):
    config, clean = run
    before = read_metrics(clean)
    finish(start_main(config, clean, *SETTINGS))
    assert read_metrics(clean) == before


@pytest.mark.parametrize("settings", [("--config.mesh.fsdp=1",), ("--config.mesh.fsdp=4",)])
def test_eight_devices_give_the_losses_of_one(run, tmp_path, settings):
    config, clean = run
    short = (*SETTINGS, "--config.train.num_steps=42", *settings)
    finish(start_main(config, tmp_path, *short, devices=8))
    ours, theirs = read_metrics(tmp_path), read_metrics(clean)[:6]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["step"] == expected["step"]
        for name in ("loss", "mse", "vb", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), (name, row["step"])


def test_the_config_that_a_run_records_is_the_one_it_had(run):
    _, clean = run
    recorded = flatten(load_config(clean))
    assert recorded["train.num_steps"] == STEPS
    assert recorded.keys() == flatten(tiny_config("")).keys()
