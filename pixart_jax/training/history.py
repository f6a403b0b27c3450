"""A run's scalar metrics as a file of lines: one JSON object per logged step, never one twice."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import IO, Any

from absl import logging

from pixart_jax.files import write_atomically


class History:
    """Appends logged metrics and reads them back, e.g. for the loss curve. The file is made with its first row.

    On resume, rows after the restored step are dropped: the run is about to write them again.
    """

    def __init__(self, path: str | pathlib.Path, start_step: int):
        self._path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = [row for row in _read(self._path) if row["step"] <= start_step]
        self._file: IO[str] | None = None
        if self._path.exists():
            kept = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(self._path, lambda file: file.write(kept.encode()))

    def append(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        row = {"step": step, **scalars}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file; a line that is none is left out, with a warning unless it is the last, cut by a kill."""
    if not path.exists():
        return []
    rows, lines = [], path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
            rows.append(row)
        except (ValueError, TypeError, KeyError):  # Of JSON, of its text, of a row without a step.
            if number < len(lines):
                logging.warning("%s: line %d is damaged and is left out: %.40r", path, number, line)
    return rows
