"""Tables of comma- or tab-separated values as lists of records."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pixart_jax.data.pictures.base import TO_UTF8, BadItem, shown
from pixart_jax.data.pictures.record_files import RecordFile, read_list
from pixart_jax.errors import InputError

# What separates the cells of a .csv: whichever stands most often in its first line.
_SEPARATORS = ",;\t|"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class CsvRecords(RecordFile):
    """The rows of a .csv or .tsv below its first line, which names the columns.

    Cells may be quoted, and a quoted one may hold separators, quotes (doubled) and line breaks. Empty cells are not
    there; a whole number in `label` is one. A row of more or fewer cells than columns cannot be used; blank lines are
    left out. Opening reads the file once, and keeps 16 bytes of each row.

    Args:
      path: .tsv for tabs; else what separates is seen; UTF-8.
      visit: called once, on opening, with the number and the value of each row that can be used.

    Attributes:
      path, digest, names: see `Records`.

    Raises:
      InputError: the file is missing or unreadable, is not UTF-8, names a column twice or none, or has no row.
    """

    def __init__(self, path: str | os.PathLike, visit: Callable[[int, Mapping], None]):
        data = read_list(path)
        path = pathlib.Path(path).absolute()
        if data.startswith(_UTF16):
            raise InputError(f"{path}: it is in UTF-16; save the table as UTF-8")
        first = data[: data.find(b"\n") + 1 or len(data)].decode("utf-8", "surrogateescape")
        self._separator = "\t" if path.suffix.lower() == ".tsv" else max(_SEPARATORS, key=first.count)
        spans: list[tuple[int, int]] = []
        rows = _rows(data, self._separator, path)
        _, _, header = next(rows, (0, 0, []))
        self._header = [name.strip() for name in header]
        if not any(self._header):
            raise InputError(f"{path}: has no first line that names the columns; write one, such as path,caption")
        if twice := {name for name in self._header if name and self._header.count(name) > 1}:
            raise InputError(f"{path}: has several columns {', '.join(sorted(twice))}; rename them in its first line")
        for start, end, row in rows:
            if len(row) == len(self._header):
                visit(len(spans), self._record(row))
            spans.append((start, end))
        if spans and _is_open(data[slice(*spans[-1])], self._separator):
            line = data.count(b"\n", 0, spans[-1][0]) + 1
            raise InputError(f"{path}: a quotation mark of line {line} is not closed, and all behind it is one cell")
        super().__init__(path, spans, hashlib.sha256(data).hexdigest())
        self.names = frozenset(filter(None, self._header))

    def read(self, index: int) -> dict:
        """See `Records`."""
        try:
            _, _, row = next(_rows(self.written(index), self._separator, self.path), (0, 0, []))
        except InputError as error:  # It has changed.
            raise BadItem(self.name(index), "bad-record", str(error)) from error
        if len(row) != len(self._header):
            problem = f"{len(row)} cells, and {len(self._header)} columns: {shown(row)}"
            raise BadItem(
                self.name(index), "bad-record", f"{problem}; put cells that hold {self._separator!r} in quotes"
            )
        return self._record(row)

    def why_no_text(self, index: int) -> str:
        """See `Records`: bytes of another encoding, which a path may have."""
        try:
            self.written(index).decode()
        except UnicodeDecodeError as error:
            line = np.searchsorted(self._line_ends, self._spans[index, 0] + error.start) + 1
            return f"{self.path}: line {line} is not UTF-8 ({error.reason}); {TO_UTF8}"
        return f"{self.path}: has changed"

    @functools.cached_property
    def _line_ends(self) -> np.ndarray:
        """Found once: where one row is in another encoding, most are."""
        return np.flatnonzero(np.fromfile(self.path, np.uint8) == ord("\n"))

    def _record(self, row: list[str]) -> dict:
        record: dict[str, object] = {name: cell for name, cell in zip(self._header, row, strict=True) if name and cell}
        label = record.get("label")
        if isinstance(label, str) and label.strip().isascii() and label.strip().isdigit() and len(label) < 20:
            record["label"] = int(label)
        return record


def _is_open(row: bytes, separator: str) -> bool:
    """Whether a row ends inside a quoted cell."""
    try:
        list(
            csv.reader(
                [row.decode("utf-8", "surrogateescape")], delimiter=separator, skipinitialspace=True, strict=True
            )
        )
    except csv.Error as error:
        return "end of data" in str(error)
    return False


def _rows(data: bytes, separator: str, path: pathlib.Path) -> Iterator[tuple[int, int, list[str]]]:
    """(first byte, byte behind the last, cells) of each line that is not blank. Bytes that are no UTF-8 become
    surrogates: in a path they may be right, and of a caption it is told."""
    end = 3 if data.startswith(b"\xef\xbb\xbf") else 0

    def lines() -> Iterator[str]:
        nonlocal end
        while end < len(data):
            start, end = end, data.find(b"\n", end) + 1 or len(data)
            yield data[start:end].decode("utf-8", "surrogateescape")

    reader, start = csv.reader(lines(), delimiter=separator, skipinitialspace=True), end
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            line = data.count(b"\n", 0, start) + 1
            raise InputError(
                f"{path}: the row from line {line} on cannot be read: {error}; is a quotation mark not closed?"
            ) from error
        if row is None:
            return
        if any(map(str.strip, row)):
            yield start, end, row
        start = end
