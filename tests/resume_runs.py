"""Runs to kill: `python -m pixart_jax.main` in processes forked from one that has imported everything."""

import dataclasses
import multiprocessing
import pathlib
import signal
import sys
import threading
import time

import jax
from forked import print_to, processes, use_devices
from tiny_run import read_metrics
from transfers import guard_reads

from pixart_jax import main
from pixart_jax.training import plan


def start(
    config: pathlib.Path, workdir: pathlib.Path, *settings: str, devices: int = 1, block_at: int = 0
) -> multiprocessing.Process:
    """Starts a run; what it prints is added to `log_of(workdir)`.

    Args:
      block_at: the batch that never comes; 0: all come.
    """
    arguments = [f"--config={config}", f"--workdir={workdir}", *settings]
    process = processes.Process(target=_run, args=(arguments, log_of(workdir), devices, block_at))
    process.start()
    return process


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.log")


def finish(process: multiprocessing.Process, workdir: pathlib.Path, expected_code: int = 0) -> str:
    """Waits for a process; what it and those before it in the workdir printed."""
    process.join(240)
    output = log_of(workdir).read_text()
    assert process.exitcode == expected_code, output[-5000:]
    return output


def wait_for(condition, process, timeout=120):
    """Waits until it holds; False if the process ended before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        if not process.is_alive():
            return False
        time.sleep(0.001)
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


class Blocking:
    """Batches of which one never comes."""

    def __init__(self, batches, number: int):
        self._batches, self._left = batches, number - 1

    def __next__(self):
        if not self._left:
            threading.Event().wait()
        self._left -= 1
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def block_batch(number: int) -> None:
    """Lets the runs of this process wait for ever for that batch."""
    open_data = plan.open_data

    def open_and_block(*args, **kwargs):
        data = open_data(*args, **kwargs)
        return dataclasses.replace(data, batches=Blocking(data.batches, number))

    plan.open_data = open_and_block


def _run(arguments: list[str], log: pathlib.Path, devices: int, block_at: int) -> None:
    print_to(log)
    use_devices(devices)
    # Ignored where the tests run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if block_at:
        block_batch(block_at)
    guard_reads()
    jax.config.update("jax_log_compiles", devices > 1)
    sys.argv = ["main", *arguments]
    main.run()
