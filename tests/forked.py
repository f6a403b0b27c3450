"""Processes forked from one that has imported everything and started nothing, so that each costs no start."""

import multiprocessing
import os
import pathlib

NUM_DEVICES = "--xla_force_host_platform_device_count"
processes = multiprocessing.get_context("forkserver")
# All contexts have one such process and one list, of which the last that is set counts: hence one place for it. The
# tests' own modules are not on its path.
processes.set_forkserver_preload(
    [
        "pixart_jax.main",
        "pixart_jax.training.loop",
        "tools.sample",
        "tools.extract_features",
        "torch",
        "transformers",
        "matplotlib.backends.backend_agg",
    ]
)


def use_devices(number: int) -> None:
    """Gives this process so many simulated devices; before it has used any."""
    os.environ["XLA_FLAGS"] = flags_for(number)


def flags_for(devices: int) -> str:
    """XLA_FLAGS of a process with that many simulated devices; the last of two that contradict each other counts."""
    return f"{os.environ.get('XLA_FLAGS', '')} {NUM_DEVICES}={devices}"


def print_to(log: pathlib.Path) -> None:
    """What this process prints from here on is added to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
