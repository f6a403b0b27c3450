"""Pictures that are measured as they are drawn: a unit of them is drawn, looked at, and kept or removed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from pixart_jax.data.pictures.base import printable, read_file
from pixart_jax.evaluators.picture_sets import pixels
from pixart_jax.generation.picture_lists import PictureList
from pixart_jax.generation.request import Progress


@dataclasses.dataclass(frozen=True)
class DrawnPictures:
    """The pictures of a list, as an `evaluators.picture_sets.PictureSet`: its units are the list's groups.

    Attributes:
      drawing: the list, whose folder has been begun.
      keep: whether pictures stay once they have been looked at.
      progress: told how drawing goes on.
    """

    drawing: PictureList
    keep: bool
    progress: Progress

    @property
    def path(self) -> str:
        return printable(str(self.drawing.folder))

    @property
    def fingerprint(self) -> str:
        """Of all that the pictures depend on, whether they are there or not."""
        return hashlib.sha256(json.dumps(dict(self.drawing.recipe), sort_keys=True).encode()).hexdigest()

    @property
    def per_unit(self) -> int:
        return self.drawing.per_group

    def __len__(self) -> int:
        return len(self.drawing.wanted)

    def name(self, place: int) -> str:
        return printable(str(self.drawing.folder / self.drawing.wanted[place].name))

    def read(self, place: int) -> np.ndarray:
        one = self.drawing.wanted[place]
        return pixels(read_file(self.drawing.folder / one.name, one.name))

    @contextlib.contextmanager
    def ready(self, number: int) -> Iterator[None]:
        self.drawing.draw_group(number, self.progress)
        yield
        if not self.keep:
            for one in self.drawing.group(number):
                (self.drawing.folder / one.name).unlink(missing_ok=True)
