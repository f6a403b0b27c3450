"""Processes forked from one that has imported everything and started nothing, so that each costs no start."""

import multiprocessing
import os
import pathlib

processes = multiprocessing.get_context("forkserver")
# All contexts have one such process and one list, of which the last that is set counts: hence one place for it. The
# tests' own modules are not on its path.
processes.set_forkserver_preload(
    ["pixart_jax.train", "tools.sample", "tools.extract_features", "torch", "transformers"]
)


def print_to(log: pathlib.Path) -> None:
    """What this process prints from here on is added to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
