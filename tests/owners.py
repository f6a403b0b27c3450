"""Another process that owns a folder, for the tests of tools that must then refuse it."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

_HOLD = """
import sys
from pixart_jax.files.locks import hold
with hold(sys.argv[1], "--out x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(lock: pathlib.Path) -> Iterator[None]:
    """A process holds the lock file while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate(timeout=60)
