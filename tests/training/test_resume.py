"""A run that is stopped, or stops by itself, ends bit-identical to one that never was; so are losses on 8 devices."""

import os
import re
import resource
import shutil
import time

import pytest
import tiny_run
from resume_runs import SETTINGS, STEPS, assert_identical, finish, last_logged, last_saved, start, wait_for
from tiny_run import read_metrics, tiny_config

from pixart_jax.cluster.preemption import STOP_SIGNALS
from pixart_jax.cluster.watchdog import HANG_EXIT_CODE
from pixart_jax.config import flatten, load_config


def test_a_request_to_stop_saves_and_the_same_command_goes_on(run, tmp_path):
    config, clean = run
    workdir = tmp_path / "run"
    for number in STOP_SIGNALS:
        process = start(config, workdir, *SETTINGS)
        aim = last_saved(workdir) + 30
        assert wait_for(lambda aim=aim: last_logged(workdir) > aim, process)
        os.kill(process.pid, number)
        output = finish(process, workdir, 128 + number)
        assert f"{number.name}: stopped at step {last_saved(workdir)}, which is saved" in output
    finish(start(config, workdir, *SETTINGS), workdir)
    assert_identical(workdir, clean)


def test_a_full_disk(run, tmp_path):
    """A limit to the size of files behaves as one: the run ends and says why, and goes on once there is room."""
    config, clean = run
    workdir = tmp_path / "run"
    # What it prints goes through a pipe, to which the limit does not apply.
    process = tiny_run.start_main(config, workdir, *SETTINGS)
    while not last_saved(workdir):
        assert process.poll() is None
        time.sleep(0.01)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, hard))
    output = tiny_run.finish(process, 1)
    saved = last_saved(workdir)
    error = rf"error: a checkpoint cannot be written to .*: File too large; the checkpoint of step {saved} is untouched"
    assert re.search(error, output), output[-3000:]
    # No save went by before it was noticed.
    assert last_logged(workdir) <= saved + 2 * 11
    output = finish(start(config, workdir, *SETTINGS), workdir)
    assert f"going on from step {saved} " in output
    assert_identical(workdir, clean)


def test_a_run_that_hangs_ends_itself_and_says_where(run, tmp_path):
    config, clean = run
    workdir = tmp_path / "run"
    process = start(config, workdir, *SETTINGS, "--config.train.hang_timeout=600", block_at=25, hang_after=2)
    output = finish(process, workdir, HANG_EXIT_CODE)
    (report,) = workdir.glob("hang_*.txt")
    for text in (output, report.read_text()):
        assert "hangs: nothing has happened for 2 s, after step 24, in a step" in text
        assert re.search(r"resume_runs.py\", line \d+ in __next__", text) and "in train_and_evaluate" in text
    assert last_saved(workdir) == 22
    finish(start(config, workdir, *SETTINGS), workdir)
    assert_identical(workdir, clean)


def test_finished_run_only_draws_its_end_again(run, tmp_path):
    config, clean = run
    workdir = shutil.copytree(clean, tmp_path / "run")
    finish(start(config, workdir, *SETTINGS), workdir)
    assert read_metrics(workdir) == read_metrics(clean)


@pytest.mark.parametrize(
    "settings", [(), ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.mesh.context=2")], ids=["data", "all"]
)
def test_eight_devices_give_the_losses_of_one(run, tmp_path, settings):
    config, clean = run
    short = (*SETTINGS, "--config.train.num_steps=42", *settings)
    workdir = tmp_path / "run"
    output = finish(start(config, workdir, *short, devices=8), workdir)
    # Nothing is compiled once the steps have begun: a save would otherwise, for each device.
    assert re.findall(r"Finished XLA compilation of (\S+)", output)[-1] == "jit(train_step)"
    ours, theirs = read_metrics(workdir), read_metrics(clean)[:6]
    for row, expected in zip(ours, theirs, strict=True):
        assert row["step"] == expected["step"]
        for name in ("loss", "mse", "vb", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), (name, row["step"])


def test_the_config_that_a_run_records_is_the_one_it_had(run):
    _, clean = run
    recorded = flatten(load_config(clean))
    assert recorded["train.num_steps"] == STEPS
    assert recorded.keys() == flatten(tiny_config("")).keys()
