"""Sheets: one prompt drawn in every combination of two settings, each along one side."""

from __future__ import annotations

import dataclasses
import pathlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.figures.images import enlarged, labelled_grid, save_png
from pixart_jax.studio.jobs import Drawn, Job, State
from pixart_jax.studio.settings import Settings

# What may stand along a side: numbers and names with commas between them, prompts a line each.
AXES = {
    "guidance": "guidance_scale", "steps": "num_steps", "seeds": "seed", "samplers": "sampler", "styles": "style",
    "prompts": "prompt",
}  # fmt: skip
MAX_CELLS, _MAX_SIDE = 36, 512
_NUMBERS: dict[str, Callable[[str], Any]] = {"guidance_scale": float, "num_steps": int, "seed": str}


def values_of(axis: str, text: str) -> list[Any]:
    """What a person wrote along a side; prompts a line each, all else with commas.

    Raises:
      InputError: no such side, nothing there, or no numbers.
    """
    if axis not in AXES:
        raise InputError(f"there is no side {axis!r:.40}; there are {', '.join(AXES)}")
    parts = text.splitlines() if axis == "prompts" else text.replace("\n", ",").split(",")
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise InputError(f"the side {axis} is empty: write its values" + (", a line each" if axis == "prompts" else ""))
    try:
        return [_NUMBERS.get(AXES[axis], str)(part) for part in parts]
    except ValueError as error:
        raise InputError(f"the side {axis} takes numbers: {str(error)[:100]}") from error


def cells_of(
    settings: Settings, across: tuple[str, str], down: tuple[str, str], check: Callable[[Mapping[str, Any]], Settings]
) -> tuple[list[Settings], int]:
    """The settings of every cell, row by row, and how many stand in a row.

    Args:
      across, down: the side and its values, as written.
      check: `Studio.settings`.

    Raises:
      InputError: as `values_of`, the same side twice, too many cells, or a value that cannot be.
    """
    if across[0] == down[0]:
        raise InputError(f"both sides are {across[0]}; choose two")
    columns, rows = values_of(*across), values_of(*down)
    if len(columns) * len(rows) > MAX_CELLS:
        raise InputError(f"{len(columns)} times {len(rows)} pictures; a sheet holds at most {MAX_CELLS}")
    plain = dataclasses.asdict(settings) | {"num_images": 1}
    cells = [check(plain | {AXES[down[0]]: row, AXES[across[0]]: column}) for row in rows for column in columns]
    return cells, len(columns)


class Sheet(Job):
    """A job that is many: its cells wait and are drawn like those of others, and its picture is the page of them.

    Args:
      cells, columns: see `cells_of`.
      sides: the names in AXES of what changes along a row, and from row to row.
      folder: where its page is laid.
    """

    def __init__(self, cells: Sequence[Settings], columns: int, sides: tuple[str, str], folder: pathlib.Path):
        super().__init__(cells[0])
        self._cells, self._columns, self._sides = [Job(cell, owner=self) for cell in cells], columns, sides
        self._folder = folder

    def begin(self, submit: Callable[[Job], Job]) -> None:
        """Submits its cells; raises InputError where there is no room for them."""
        try:
            for cell in self._cells:
                submit(cell)
        except InputError:
            self.stop()
            raise
        threading.Thread(target=self._collect, name="sheet", daemon=True).start()

    def stop(self) -> None:
        """Stops all cells."""
        super().stop()
        for cell in self._cells:
            cell.stop()

    def _collect(self) -> None:
        self.tell(state=State.DRAWING, stage="drawing the sheet", total=len(self._cells))
        for number, cell in enumerate(self._cells, 1):
            view = cell.wait()
            if view.state is not State.DONE:
                self.stop()
                self.tell(state=view.state, error=view.error)
                break
            self.tell(stage="drawing the sheet", done=number, total=len(self._cells))
        else:
            path = self._folder / secrets.token_urlsafe(16) / "sheet.png"
            try:
                save_png(path, self._page(), self.settings.chunks({}, 0) if self.settings.style == "none" else None)
                self.tell(state=State.DONE, pictures=(Drawn(path, self.settings, 0),))
            except InputError as error:
                self.tell(state=State.FAILED, error=str(error))
        for cell in self._cells:
            for drawn in cell.view.pictures:
                drawn.path.unlink(missing_ok=True)

    def _page(self) -> np.ndarray:
        entries = []
        for cell in self._cells:
            image = Image.open(cell.view.pictures[0].path).convert("RGB")
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            told = [f"{side} {getattr(cell.settings, AXES[side])}" for side in self._sides]
            entries.append((enlarged(np.asarray(image)), ", ".join(told)))
        return labelled_grid(entries, columns=self._columns, heading=self.settings.prompt[:200])
