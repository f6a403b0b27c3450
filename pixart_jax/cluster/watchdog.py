"""Notices that a run hangs, says where, and ends it, so that a scheduler can start it again."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pathlib
import sys
import threading
import time
from contextlib import contextmanager
from typing import TextIO

from pixart_jax.cluster.processes import all_fail, ending, leave, process_number, this_process

# "Temporary failure, try again" of sysexits.h.
HANG_EXIT_CODE = os.EX_TEMPFAIL
# Looks per timeout. Looks are counted and not seconds: a run that was suspended for hours does not hang.
_LOOKS = 20
# Seconds that the report may take to be written: the workdir's file system may be what hangs.
_REPORT_TIMEOUT = 30


class Watchdog:
    """Ends the process with HANG_EXIT_CODE if `timeout` seconds pass without a call of `beat`.

    Before that the Python stacks of all threads go to stderr and to `workdir/hang_TIME.txt`, and processes that this
    one has started are killed. No checkpoint is written: the devices may be what hangs. With several processes all hang
    soon after one does: each ends so, and the report that is not about waiting for the others says what it was.

    Args:
      workdir: of the run; exists.
      timeout: 0 never ends it.
    """

    def __init__(self, workdir: pathlib.Path, timeout: float):
        self._workdir, self._timeout = workdir, timeout
        self._beat: tuple[int, str] = (0, "")
        self._stopped = threading.Event()
        if timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int, doing: str) -> None:
        """The run goes on.

        Args:
          step: the last one that was given to the devices, which are at most a few behind.
          doing: what comes next, in words.
        """
        self._beat = (step, doing)

    def stop(self) -> None:
        """From here on the process may take its time."""
        self._stopped.set()

    def _watch(self) -> None:
        seen, looks = self._beat, 0
        while not self._stopped.wait(self._timeout / _LOOKS):
            # By identity: two evaluations of one step are two beats.
            seen, looks = self._beat, looks + 1 if self._beat is seen else 0
            if looks == _LOOKS:
                self._end_process()

    def _end_process(self) -> None:
        ending.acquire(timeout=_REPORT_TIMEOUT)
        step, doing = self._beat
        what = f"{this_process()} hangs: nothing has happened for {self._timeout:g} s, after step {step}, in {doing}"
        path = self._workdir / time.strftime(f"hang_%Y%m%d-%H%M%S_{process_number()}.txt")
        _report(sys.stderr, f"{what}; exit status {HANG_EXIT_CODE}; the stacks are also in {path}")
        writer = threading.Thread(target=_write_report, args=(path, what), daemon=True)
        writer.start()
        writer.join(_REPORT_TIMEOUT)
        # Others look at other times, and would go down with this one before they have said where they are.
        all_fail(self._timeout / _LOOKS * 2)
        for child in multiprocessing.active_children():
            child.kill()
        leave(HANG_EXIT_CODE)


@contextmanager
def watched(workdir: pathlib.Path, timeout: float, doing: str):
    """A Watchdog over what is done before there are steps."""
    watchdog = Watchdog(workdir, timeout)
    watchdog.beat(0, doing)
    try:
        yield
    finally:
        watchdog.stop()


def _write_report(path: pathlib.Path, what: str) -> None:
    with path.open("w") as file:
        _report(file, what)


def _report(file: TextIO, what: str) -> None:
    print(f"error: {what}", file=file, flush=True)
    faulthandler.dump_traceback(file, all_threads=True)
    file.flush()
