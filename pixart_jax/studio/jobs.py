"""What visitors of the studio wait for: one job is what one of them asked for at once, and how far it is."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pixart_jax.generation.given import Given
from pixart_jax.studio.settings import Settings

# Seconds after which whoever follows a job is told again, though nothing has changed: one who has left is found so.
_BEAT = 5.0


class State(enum.Enum):
    """How far a job is."""

    WAITING = "waiting"
    DRAWING = "drawing"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self in (State.DONE, State.STOPPED, State.FAILED)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A finished picture: its PNG, and what it was drawn with."""

    path: pathlib.Path
    settings: Settings
    number: int


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A job as it is at one moment.

    Attributes:
      stage: what is being done, in words; done of total is how far it is.
      ahead: jobs that come before it.
      seconds: how long it has been drawn; seconds_left about how much longer, None where nothing is known.
      previews: uint8[h, w, 3] of each picture that is half drawn, one pixel a cell of 8×8.
      pictures: those that are finished.
      error: why it failed, for people.
    """

    state: State
    stage: str = ""
    done: int = 0
    total: int = 0
    ahead: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    previews: tuple[np.ndarray, ...] = ()
    pictures: tuple[Drawn, ...] = ()
    error: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A picture uint8[H, W, 3] whose edges are followed, and how bright they are, 0 to 1."""

    picture: np.ndarray
    scale: float = 1.0


class Job:
    """What one visitor asked for at once. Its worker changes it, and any number of others follow it.

    Args:
      settings: what is to be drawn.
      given: a picture to draw from.
      control: a picture whose edges a ControlNet follows.
      owner: the job that it is a part of; None is none.
    """

    def __init__(
        self,
        settings: Settings,
        given: Given | None = None,
        control: Followed | None = None,
        owner: Job | None = None,
    ):
        self.settings, self.given, self.control = settings, given, control
        self.owner = owner or self
        self._changed = threading.Condition()
        self._view, self._version = View(State.WAITING), 0
        self._wants_stop = False
        self._began = self._stage_began = 0.0
        self._first_done = 0

    @property
    def view(self) -> View:
        """How far it is."""
        return self._view

    @property
    def wants_stop(self) -> bool:
        """Whether its visitor has had enough."""
        return self._wants_stop

    def stop(self) -> None:
        """Asks for it to end at its next step."""
        with self._changed:
            self._wants_stop = True
            if self._view.state is State.WAITING:
                self._set(state=State.STOPPED)

    def tell(self, **changes: Any) -> None:
        """Changes what is seen of it, unless it is over."""
        with self._changed:
            if self._view.state.is_over:
                return
            now = time.monotonic()
            if changes.get("state") is State.DRAWING:
                self._began = now
            if changes.get("stage", self._view.stage) != self._view.stage:
                # From its first step on, which may have waited for the compiler.
                self._stage_began, self._first_done = now, changes.get("done", 0)
                changes = {"done": 0, "total": 0, "seconds_left": None} | changes
            elif (steps := changes.get("done", 0) - self._first_done) > 0 and changes.get("total"):
                changes["seconds_left"] = (now - self._stage_began) / steps * (changes["total"] - changes["done"])
            if self._began:
                changes["seconds"] = now - self._began
            self._set(**changes)

    def _set(self, **changes: Any) -> None:
        self._view = dataclasses.replace(self._view, **changes)
        self._version += 1
        self._changed.notify_all()

    def follow(self) -> Iterator[View]:
        """How it is now, and whenever that has changed, until it is over; every few seconds even if it has not."""
        seen = -1
        while True:
            with self._changed:
                if self._version == seen:
                    self._changed.wait(_BEAT)
                seen, view = self._version, self._view
            yield view
            if view.state.is_over:
                return

    def wait(self, timeout: float | None = None) -> View:
        """How it is when it is over, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._view.state.is_over, timeout)
            return self._view
