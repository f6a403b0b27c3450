"""What every tracker is, and a tracker that no training waits for or falls with."""

from __future__ import annotations

import json
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging

from pixart_jax.files import write_atomically

# Says by which name each tracker knows the run.
TRACKERS_FILE = "trackers.json"
# Calls that may wait for a tracker: hours of log steps. More than these it will not catch up with.
_WAITING = 10_000
# Seconds that the end of a run waits for what is still under way.
_LAST_WAIT = 60.0


class Tracker(Protocol):
    """What shows a run's numbers and pictures. Steps may come again, when a run goes on from a checkpoint before
    them; what is logged then is the same."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """A point at `step` of the curve of each name."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures uint8[n, H, W, 3], or uint8[H, W, 3], at `step` under each name."""

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """What the run runs on (`record.record_run`), in place of what was told before."""

    def close(self) -> None:
        """Nothing can be written any more."""


class Aside:
    """A tracker in a thread of its own. The first failure is said once, and from then on nothing is written.

    Args:
      name: of the tracker, for the log.
      tracker: whose calls come in order, all in one thread.
    """

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker, self._failed = name, tracker, False
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        # A daemon, as a server that does not answer must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker`."""
        kept = dict(scalars)
        self._submit(lambda: self._tracker.write_scalars(step, kept))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        kept = dict(images)
        self._submit(lambda: self._tracker.write_images(step, kept))

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        kept = dict(facts)
        self._submit(lambda: self._tracker.write_facts(kept))

    def close(self) -> None:
        """Waits a minute for what is under way, and no longer."""
        self._submit(self._tracker.close)
        self._submit(None)
        begin = time.monotonic()
        self._thread.join(1.0)
        if self._thread.is_alive() and not self._failed:
            logging.info("waiting for %s to take what is left", self._name)
            self._thread.join(max(0.0, _LAST_WAIT - (time.monotonic() - begin)))
        if self._thread.is_alive() and not self._failed:
            self._fail(f"took no more than {self._calls.unfinished_tasks} of the last calls in {_LAST_WAIT:g} s")

    def _submit(self, call: Callable[[], None] | None) -> None:
        if self._failed and call is not None:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail(f"{_WAITING} calls are waiting for it")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failed:
                continue
            try:
                call()
            except Exception as error:  # Each package has its own, of accounts, servers and disks.
                self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, problem: str) -> None:
        if not self._failed:
            self._failed = True
            logging.warning(
                "%s FAILED, and training goes on without it: %s; metrics.jsonl in the workdir has every number",
                self._name,
                next(iter(problem.splitlines()), problem),
            )


def known_as(workdir: pathlib.Path) -> dict[str, Any]:
    """By which name each tracker knows the run of a workdir; {} of a new one."""
    try:
        found = json.loads((workdir / TRACKERS_FILE).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):  # A damaged file: the run is tracked as a new one.
        return {}


def remember(workdir: pathlib.Path, tracker: str, name: str) -> None:
    """Writes down by which name a tracker knows the run."""
    text = json.dumps(known_as(workdir) | {tracker: name}, indent=2) + "\n"
    write_atomically(workdir / TRACKERS_FILE, lambda file: file.write(text.encode()))
