"""Who draws, and what each has drawn lately: kept within bounds, so that a studio may run for ever."""

from __future__ import annotations

import collections
import secrets
import threading
from collections.abc import Sequence

from pixart_jax.errors import InputError
from pixart_jax.studio.jobs import Drawn, Job

# Visitors that are remembered, those who were here last; and of each its newest pictures.
MAX_VISITORS, MAX_PICTURES = 64, 24
# Of all programs together, which have fetched theirs long before.
MAX_OF_PROGRAMS = 256


class Visitor:
    """One browser: what it draws now, and its finished pictures, newest first."""

    def __init__(self, max_pictures: int = MAX_PICTURES) -> None:
        self.max_pictures = max_pictures
        self.job: Job | None = None
        self.pictures: list[Drawn] = []


class Visitors:
    """Visitors by a name that only their browser knows."""

    def __init__(self) -> None:
        self._known: collections.OrderedDict[str, Visitor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def name(self, given: object) -> str:
        """The name that a browser brings, or a new one where it brings none that is known."""
        with self._lock:
            return given if isinstance(given, str) and given in self._known else secrets.token_urlsafe(16)

    def visitor(self, name: str) -> Visitor:
        """Who is called so, from now on the one who was here last."""
        gone = []
        with self._lock:
            visitor = self._known.setdefault(name, Visitor())
            self._known.move_to_end(name)
            while len(self._known) > MAX_VISITORS:
                gone.append(self._known.popitem(last=False)[1])
        for other in gone:
            if other.job is not None:
                other.job.stop()
            _remove(other.pictures)
        return visitor

    def begin(self, visitor: Visitor, job: Job) -> None:
        """A visitor draws one job at a time; raises InputError where one is not over."""
        with self._lock:
            if visitor.job is not None and not visitor.job.view.state.is_over:
                raise InputError("your last drawing is not done yet; stop it, or wait for it")
            visitor.job = job

    def finish(self, visitor: Visitor) -> None:
        """Lays what is finished of a visitor's job to its pictures."""
        with self._lock:
            if (job := visitor.job) is None:
                return
            view = job.view
            if view.state.is_over:
                visitor.job = None
        self.keep(visitor, view.pictures)

    def keep(self, visitor: Visitor, pictures: Sequence[Drawn]) -> None:
        """Lays pictures to a visitor's, before them; those that are too many go."""
        with self._lock:
            kept = set(visitor.pictures)
            new = [drawn for drawn in pictures if drawn not in kept]
            visitor.pictures = [*reversed(new), *visitor.pictures]
            gone = visitor.pictures[visitor.max_pictures :]
            visitor.pictures = visitor.pictures[: visitor.max_pictures]
        _remove(gone)


def _remove(pictures: list[Drawn]) -> None:
    for drawn in pictures:
        drawn.path.unlink(missing_ok=True)
        if not any(drawn.path.parent.iterdir()):
            drawn.path.parent.rmdir()
