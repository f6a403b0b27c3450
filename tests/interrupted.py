"""Python code in a process of its own that gets Ctrl-C."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


def heed_ctrl_c() -> None:
    """To be called in a child: where the tests run in the background, a shell has made them ignore it, and children
    inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Ended(NamedTuple):
    """How it ended, and what it printed from then on, when it got Ctrl-C."""

    status: int
    out: str
    err: str


def interrupt(code: str, *args: str) -> Ended:
    """Ctrl-C comes once the code has said that it is waiting."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    for line in process.stdout:
        if "waiting" in line:
            break
    process.send_signal(signal.SIGINT)
    return Ended(process.wait(50), *process.communicate())
