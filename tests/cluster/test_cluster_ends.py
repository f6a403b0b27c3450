"""How several real processes end together, whatever one of them meets, and go on as if nothing had been."""

import os
import re
import resource
import shutil
import signal
import time

import pytest
from cluster_runs import start
from resume_runs import last_saved
from tiny_run import read_metrics

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.cluster.watchdog import HANG_EXIT_CODE

# Parameters that no process has whole; steps that are not multiples of one another.
RUN = (
    "--config.mesh.fsdp=2",
    "--config.train.num_steps=100000",
    "--config.train.log_every=3",
    "--config.train.checkpoint_every=5",
)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def checksums(workdir, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    return {name: checkpoints.recorded_checksums(step, name) for name in ("params", "ema_params", "opt_state")}


def halve_largest(folder):
    """Cuts off half of the largest file below a folder."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.fixture(scope="module")
def endless(root):
    """The workdir of a run of two processes that was begun, and each time a test was done with it goes on."""
    return root / "endless"


def test_a_request_to_stop_stops_all_after_the_same_step(root, endless):
    for process, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        run = start(root, endless, 2, *RUN)
        run.wait_for_step(endless, last_saved(endless) + 7)
        os.kill(run.processes[process].pid, number)
        for output in run.finish(128 + number):
            assert f"{number.name}: stopped at step {last_saved(endless)}, which is saved" in output


def test_one_that_dies_ends_all(root, endless):
    run = start(root, endless, 2, *RUN, "--heartbeat_timeout=100")
    run.wait_for_step(endless, last_saved(endless) + 7)
    run.processes[1].kill()
    begin = time.monotonic()
    output, _ = run.finish(1, -signal.SIGKILL)
    # Not because it was silent for long.
    assert time.monotonic() - begin < 90
    assert "process 1 gave no answer and may have died; start all processes again" in output
    assert "disk" not in output


def test_the_first_one_that_dies_ends_all(root, endless):
    """It is through it that the others hear of each other: JAX may abort before they have told why."""
    run = start(root, endless, 2, *RUN)
    run.wait_for_step(endless, last_saved(endless) + 7)
    run.processes[0].kill()
    run.processes[1].join(60)
    _, output = run.outputs()
    assert run.processes[1].exitcode in (1, -signal.SIGABRT), output[-3000:]
    assert re.search("error: process 1 of 2 .* stops: |Either the leader task was preempted/died", output)


def test_one_that_dies_where_the_others_wait_for_it(root, endless):
    """JAX, which would notice some time later, aborts."""
    run = start(root, endless, 2, *RUN, "--heartbeat_timeout=8", dying=(1,))
    output, _ = run.finish(1, -signal.SIGKILL)
    assert re.search(r"error: process 1 of 2 \(.*\) gave no sign of life for 8 s", output)


def test_one_that_hangs_ends_all_and_says_where(root, endless):
    hangs = {"block_at": {1: 8}, "hang_after": {8: 6}}
    start(root, endless, 2, *RUN, "--config.train.hang_timeout=600", **hangs).finish(HANG_EXIT_CODE)
    reports = {path.stem[-1]: path.read_text() for path in endless.glob("hang_*.txt")}
    assert sorted(reports) == ["0", "1"]
    for index, report in reports.items():
        assert f"error: process {index} of 2 (" in report and "nothing has happened for 6 s, after step" in report
    hung = r'resume_runs.py", line \d+ in __next__'
    assert re.search(hung, reports["1"]) and not re.search(hung, reports["0"])


def test_a_checkpoint_that_cannot_be_completed_ends_all(root, tmp_path):
    """Which the first process does when all have written their parts, and would tell when the others have waited."""
    run = start(root, tmp_path / "run", 2, *RUN, incomplete=(0,))
    run.wait_for_step(tmp_path / "run", 3)
    begin = time.monotonic()
    for output in run.finish(1):
        assert re.search(r"error: process 0 of 2 .* stops: a checkpoint cannot be written .*: no folder today", output)
    assert time.monotonic() - begin < 60


def test_one_that_cannot_save_ends_all(root, endless):
    run = start(root, endless, 2, *RUN)
    run.wait_for_step(endless, last_saved(endless) + 2)
    # The largest file is some 130,000 bytes, what it prints far less.
    _, hard = resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE, (60_000, hard))
    saved = last_saved(endless)
    for output in run.finish(1):
        assert re.search(
            r"error: process 1 of 2 \(.*\) stops: a checkpoint cannot be written to .*: File too large", output
        )
        assert "may have died" not in output
    assert last_saved(endless) == saved


def test_a_run_that_was_ended_in_all_these_ways_ends_as_one_that_was_not(root, endless, tmp_path):
    """The last of those that go on with the run, whose newest checkpoint is damaged where only process 1 reads it."""
    before, saved = saved_steps(endless)
    halve_largest(endless / "checkpoints" / str(saved) / "params" / "ocdbt.process_1")
    for output in start(root, endless, 2, *RUN).finish(2):
        assert re.search(rf"error: process 1 of 2 .* stops: the checkpoint .*/{saved} is damaged", output)
    damaged = endless / "checkpoints" / str(saved)
    damaged.rename(f"{damaged}.damaged")  # As the message says.
    last = f"--config.train.num_steps={saved + 10}"
    assert f"going on from step {before} " in start(root, endless, 2, *RUN, last).finish(0)[0]
    start(root, tmp_path / "clean", 2, *RUN, last).finish(0)
    assert read_metrics(endless) == read_metrics(tmp_path / "clean")
    assert checksums(endless, saved + 10) == checksums(tmp_path / "clean", saved + 10)


def test_weights_to_start_from(root, endless, tmp_path):
    """Each process reads them by itself, here those that two have saved; the damage that one of them meets ends all."""
    few = ["--config.train.num_steps=3", "--config.init_from=first"]
    folders = {i: tmp_path / str(i) for i in range(2)}
    for folder in folders.values():
        shutil.copytree(endless, folder / "first")
    for number in (1, 2):
        run = start(root, tmp_path / f"by-{number}", number, *few, f"--config.mesh.fsdp={number}", folders=folders)
        run.finish(0)
    for ours, theirs in zip(read_metrics(tmp_path / "by-2"), read_metrics(tmp_path / "by-1"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    halve_largest(folders[1] / "first" / "checkpoints" / str(last_saved(endless)) / "ema_params")
    for output in start(root, tmp_path / "none", 2, *few, folders=folders).finish(2):
        assert re.search("error: .*config.init_from = 'first': .* is damaged", output)
