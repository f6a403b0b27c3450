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

from pixart_jax.cluster.ending import Ending
from pixart_jax.cluster.processes import all_fail, process_number, this_process

# "Temporary failure, try again" of sysexits.h.
HANG_EXIT_CODE = os.EX_TEMPFAIL


class Watchdog:
    """Ends the process with HANG_EXIT_CODE if `timeout` seconds pass without a call of `beat`.

    Before that the Python stacks of all threads go to stderr and to `workdir/hang_TIME.txt`, and processes that this
    one has started are killed. No checkpoint is written: the devices may be what hangs. With several processes all hang
    soon after one does: each ends so, and the report that is not about waiting for the others says what it was.

    Args:
      workdir: of the run; exists.
      timeout: 0 never ends it.
      ending: of the process; one of its own only where no other thread may end it.
      looks: per timeout. Looks are counted and not seconds: a run that was suspended for hours does not hang.
      report_timeout: seconds that the report may take to be written: the workdir's file system may be what hangs.
      patience: seconds, if `timeout` is not more, for what is done for the first time: programs are compiled and tuned
        for it, which takes as long as it takes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        timeout: float,
        *,
        ending: Ending | None = None,
        looks: int = 20,
        report_timeout: float = 30,
        patience: float = 3600,
    ):
        self._workdir, self._timeout = workdir, timeout
        self._ending, self._looks, self._report_timeout = ending or Ending(), looks, report_timeout
        self._patience = patience
        self._beat: tuple[int, str, bool] = (0, "", False)
        self._stopped = threading.Event()
        if timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int, doing: str, *, first: bool = False) -> None:
        """The run goes on.

        Args:
          step: the last one that was given to the devices, which are at most a few behind.
          doing: what comes next, in words.
          first: it is done for the first time; see `patience`.
        """
        self._beat = (step, doing, first)

    def stop(self) -> None:
        """From here on the process may take its time."""
        self._stopped.set()

    def _watch(self) -> None:
        seen, looks = self._beat, 0
        while not self._stopped.wait(self._timeout / self._looks):
            # By identity: two evaluations of one step are two beats.
            seen, looks = self._beat, looks + 1 if self._beat is seen else 0
            if looks >= self._looks * self._limit() / self._timeout:
                self._end_process()

    def _limit(self) -> float:
        """Seconds that what is being done may take."""
        _, _, first = self._beat
        return max(self._timeout, self._patience) if first else self._timeout

    def _end_process(self) -> None:
        self._ending.claim(self._report_timeout)
        step, doing, _ = self._beat
        what = f"{this_process()} hangs: nothing has happened for {self._limit():g} s, after step {step}, in {doing}"
        path = self._workdir / time.strftime(f"hang_%Y%m%d-%H%M%S_{process_number()}.txt")
        _report(sys.stderr, f"{what}; exit status {HANG_EXIT_CODE}; the stacks are also in {path}")
        writer = threading.Thread(target=_write_report, args=(path, what), daemon=True)
        writer.start()
        writer.join(self._report_timeout)
        # Others look at other times, and would go down with this one before they have said where they are.
        all_fail(self._timeout / self._looks * 2)
        for child in multiprocessing.active_children():
            child.kill()
        self._ending.leave(HANG_EXIT_CODE)


@contextmanager
def watched(workdir: pathlib.Path, timeout: float, doing: str, *, ending: Ending | None = None):
    """A Watchdog over what is done, for the first time, before there are steps."""
    watchdog = Watchdog(workdir, timeout, ending=ending)
    watchdog.beat(0, doing, first=True)
    try:
        yield
    finally:
        watchdog.stop()


def _write_report(path: pathlib.Path, what: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        _report(file, what)


def _report(file: TextIO, what: str) -> None:
    print(f"error: {what}", file=file, flush=True)
    faulthandler.dump_traceback(file, all_threads=True)
    file.flush()
