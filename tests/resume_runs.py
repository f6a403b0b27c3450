"""Runs to kill: `python -m pixart_jax.main` in processes forked from one that has imported everything."""

import dataclasses
import math
import multiprocessing
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from forked import print_to, processes, use_devices
from tiny_run import read_metrics
from transfers import guard_reads

from pixart_jax import main
from pixart_jax.training import plan
from pixart_jax.training import run as training_run

STEPS = 240
# Not multiples of one another, so that kills fall into every phase of logging and saving.
SETTINGS = (
    f"--config.train.num_steps={STEPS}",
    "--config.train.log_every=7",
    "--config.train.checkpoint_every=11",
    "--config.sample.every=0",
)


def start(
    config: pathlib.Path,
    workdir: pathlib.Path,
    *settings: str,
    devices: int = 1,
    block_at: int = 0,
    hang_after: float = 0,
) -> multiprocessing.Process:
    """Starts a run; what it prints is added to `log_of(workdir)`.

    Args:
      block_at: the batch that never comes; 0: all come.
      hang_after: seconds without that batch are a hang; 0: as many as the config says.
    """
    arguments = [f"--config={config}", f"--workdir={workdir}", *settings]
    process = processes.Process(target=_run, args=(arguments, log_of(workdir), devices, block_at, hang_after))
    process.start()
    return process


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.log")


def finish(process: multiprocessing.Process, workdir: pathlib.Path, expected_code: int = 0) -> str:
    """Waits for a process; what it and those before it in the workdir printed."""
    process.join(600)
    output = log_of(workdir).read_text()
    assert process.exitcode == expected_code, output[-5000:]
    return output


def wait_for(condition, process, timeout=600):
    """Waits until it holds; False if the process ended before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        if not process.is_alive():
            return False
        time.sleep(0.005)
    raise AssertionError(f"nothing within {timeout} s")


def last_logged(workdir) -> int:
    try:
        return read_metrics(workdir)[-1]["step"]
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def last_saved(workdir) -> int:
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def half_saved(workdir) -> bool:
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def load_arrays(workdir, step):
    names = ("params", "ema_params", "opt_state")
    checkpointer = ocp.StandardCheckpointer()
    return {name: checkpointer.restore(workdir / "checkpoints" / str(step) / name) for name in names}


def assert_identical(workdir, clean):
    ours, theirs = load_arrays(workdir, STEPS), load_arrays(clean, STEPS)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert read_metrics(workdir) == read_metrics(clean)


class Batches:
    """Batches, before each of which something is done that gets its number."""

    def __init__(self, batches, action):
        self._batches, self._action, self._number = batches, action, 0

    def __next__(self):
        self._number += 1
        self._action(self._number)
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def before_batches(action) -> None:
    """Does something before each batch of this process's runs; what is added last is done first."""
    open_data = plan.open_data

    def open_others(*args, **kwargs):
        data = open_data(*args, **kwargs)
        return dataclasses.replace(data, batches=Batches(data.batches, action))

    plan.open_data = open_others


def block_batch(number: int) -> None:
    """Lets the runs of this process wait for ever for that batch."""
    before_batches(lambda batch: threading.Event().wait() if batch == number else None)


def hurry_watchdog(number: int, seconds: float) -> None:
    """From that batch on so many seconds without a sign are a hang; before it only as many as the config says, which
    may be many: whatever else the machine is busy with, nothing before that batch hangs."""
    watchdogs = []

    class Watchdog(training_run.Watchdog):
        def __init__(self, workdir, timeout, **others):
            super().__init__(workdir, timeout, looks=math.ceil(timeout), **others)
            watchdogs.append(self)

    def hurry(batch):
        if batch == number:
            for watchdog in watchdogs:
                watchdog._timeout = seconds
                watchdog._looks = 20

    training_run.Watchdog = Watchdog
    before_batches(hurry)


def _run(arguments: list[str], log: pathlib.Path, devices: int, block_at: int, hang_after: float) -> None:
    print_to(log)
    use_devices(devices)
    # Ignored where the tests run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if block_at:
        block_batch(block_at)
    if hang_after:
        hurry_watchdog(block_at, hang_after)
    guard_reads()
    jax.config.update("jax_log_compiles", devices > 1)
    sys.argv = ["main", *arguments]
    main.run()
