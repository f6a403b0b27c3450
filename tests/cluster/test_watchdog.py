"""The watchdog in a process of its own: what hangs ends, with the reason; what does not, does not."""

import subprocess
import sys

import pytest
from tiny_run import ROOT

from pixart_jax.cluster.watchdog import HANG_EXIT_CODE

PROGRAM = """
import multiprocessing, pathlib, sys, threading, time
from pixart_jax.cluster.watchdog import Watchdog

def sleep_long():
    time.sleep(1000)

if __name__ == "__main__":
    how, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
    multiprocessing.get_context("fork").Process(target=sleep_long).start()
    watchdog = Watchdog(workdir, 0 if how == "off" else 1, patience=2 if how == "first hangs" else 3600)
    for step in range(1, 9):
        watchdog.beat(step, "a step")
        time.sleep(0.2)
    if how.startswith("first"):
        watchdog.beat(8, "a step", first=True)
    if how == "first":
        time.sleep(3)
        watchdog.beat(9, "a step", first=True)
        time.sleep(3)
    if how in ("stopped", "first"):
        watchdog.stop()
    if how in ("stopped", "off", "first"):
        time.sleep(2)
        for child in multiprocessing.active_children():
            child.kill()
        sys.exit(0)
    threading.Event().wait()
"""


def run(how, workdir):
    """Returns when the program's child has ended too, which has its stdout."""
    command = [sys.executable, "-c", PROGRAM, how, str(workdir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("how", ["hangs", "first hangs", "workdir is gone", "stopped", "off", "first"])
def test_watchdog(how, tmp_path):
    workdir = tmp_path if how != "workdir is gone" else tmp_path / "gone"
    result = run(how, workdir)
    reports = list(tmp_path.glob("hang_*.txt"))
    if how in ("stopped", "off", "first"):
        assert (result.returncode, reports) == (0, []), result.stderr
        return
    assert result.returncode == HANG_EXIT_CODE, result.stderr
    texts = [result.stderr] + [path.read_text() for path in reports]
    assert len(texts) == (1 if how == "workdir is gone" else 2)
    for text in texts:
        seconds = 2 if how == "first hangs" else 1
        assert f"hangs: nothing has happened for {seconds} s, after step 8, in a step" in text
        assert "in wait" in text and 'File "<string>", line' in text
