"""A run's scalar metrics as a file of lines: one JSON object per logged step, never one twice."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from pixart_jax.files import write_atomically


class History:
    """Appends logged metrics and reads them back, e.g. for the loss curve.

    On resume, rows after the restored step are dropped: the run is about to write them again.
    """

    def __init__(self, path: str | pathlib.Path, start_step: int):
        self._path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = [row for row in _read(self._path) if row["step"] <= start_step]
        kept = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomically(self._path, lambda file: file.write(kept.encode()))
        self._file = self._path.open("a")

    def append(self, step: int, scalars: dict[str, float]) -> None:
        row = {"step": step, **scalars}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # The line that a killed process was writing; nothing follows it.
    return rows
