"""Rows of Parquet files by number, in bounded memory."""

from __future__ import annotations

import bisect
import collections
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pixart_jax.data.pictures.base import BadItem, path_text, printable
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular

# Of decoded rows about so much is read at a time, and kept: reads in order find the next row here, and so do those of
# threads that run ahead of one another.
_BLOCK_BYTES, _MOST_BLOCKS = 32 << 20, 4


class ParquetRows:
    """The rows of Parquet files, one file after the other.

    Opening reads the footers alone. A row is read with its neighbours: its row group, or 32 MiB of one that is larger.
    What is read stays until four such blocks have come since, so that reading in order reads each once; reading at
    random decodes a block for each row, and of a row group that is larger than a block all that stands before it.
    Threads may share it; it pickles.

    Args:
      files: paths.
      root: folder that names are relative to.

    Attributes:
      files: paths, absolute.
      names: of the columns that all files have.
      schema: Arrow's, of the first file.
      digest: of the files' names, sizes and footers.

    Raises:
      InputError: pyarrow is missing, or a file is missing or is no whole Parquet file; names it.
    """

    def __init__(self, files: Sequence[str], root: str | os.PathLike):
        self.files = [os.path.abspath(file) for file in files]
        arrow = _pyarrow(self.files[0])
        self._root = os.path.abspath(root)
        # Of each row group: its file, its place in it, and its first row among all; of each file its first row.
        self._groups: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._length = 0
        self._described: list[str] = []
        common: set[str] | None = None
        self._firsts: list[int] = []
        for number, file in enumerate(self.files):
            self._firsts.append(self._length)
            try:
                with open_regular(file) as opened, arrow.ParquetFile(opened) as table:
                    schema, metadata = table.schema_arrow, table.metadata
            except Exception as error:  # Arrow has several for a damaged footer.
                raise InputError(f"{file}: is no whole Parquet file ({_line(error)}); copy it again") from error
            if number == 0:
                self.schema = schema
            common = set(schema.names) if common is None else common & set(schema.names)
            for place in range(metadata.num_row_groups):
                group = metadata.row_group(place)
                if group.num_rows:
                    self._groups.append((number, place))
                    self._starts.append(self._length)
                    self._length += group.num_rows
                    # Where the bytes of its columns stand.
                    ends = [_column(group, column) for column in range(group.num_columns)]
                    self._described.append(json.dumps([self.name_of(number), os.path.getsize(file), place, ends]))
        self.names = frozenset(common or ())
        self.digest = hashlib.sha256("\n".join(self._described).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def name_of(self, file: int) -> str:
        """A file's name, without its extension."""
        path = printable(path_text(os.path.relpath(self.files[file], self._root)))
        return path.removesuffix(".parquet")

    def place(self, row: int) -> tuple[str, int]:
        """(name of its file, number in it) of a row."""
        file = self._groups[self.group_of(row)][0]
        return self.name_of(file), row - self._firsts[file]

    def file_of(self, row: int) -> str:
        """The path of a row's file."""
        return self.files[self._groups[self.group_of(row)][0]]

    def group_of(self, row: int) -> int:
        """The number of a row's group, among all of all files."""
        return bisect.bisect_right(self._starts, row) - 1

    def group(self, number: int) -> tuple[str, int, int]:
        """(path of its file, place in it, first row) of a row group."""
        file, place = self._groups[number]
        return self.files[file], place, self._starts[number]

    def digest_of(self, items: range) -> str:
        """Of the row groups that hold some of the rows."""
        if not len(items):
            return ""
        first, last = self.group_of(items[0]), self.group_of(items[-1])
        described = "\n".join(self._described[first : last + 1])
        return hashlib.sha256(f"{items}\n{described}".encode()).hexdigest()

    def columns(self, *columns: str) -> ColumnReader:
        """What reads some of the columns, or of the parts of columns ("image.bytes")."""
        return ColumnReader(self, columns)

    def all_of(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Those columns of every row, in order.

        Raises:
          InputError: a file is damaged.
        """
        reader = self.columns(*columns)
        for row in range(len(self)):
            try:
                yield reader.read(row, "")
            except BadItem as error:
                raise InputError(f"{error.message}; copy the file again") from error


class _Block(NamedTuple):
    """Rows `start` up to `end` of all, decoded."""

    start: int
    end: int
    batch: Any


class ColumnReader:
    """Some columns of `ParquetRows`."""

    def __init__(self, rows: ParquetRows, columns: Sequence[str]):
        self._rows, self._columns = rows, list(columns)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._blocks: collections.deque[_Block] = collections.deque(maxlen=_MOST_BLOCKS)
        # The row group that is being read on, what comes of it, and the first row of that.
        self._open: tuple[int, Iterator[Any], int] | None = None

    def __getstate__(self) -> tuple[ParquetRows, list[str]]:
        return self._rows, self._columns

    def __setstate__(self, state: tuple[ParquetRows, list[str]]) -> None:
        self._rows, self._columns = state
        self._forget()

    def read(self, row: int, key: str) -> Mapping[str, Any]:
        """The row's values by column.

        Raises:
          BadItem: "unreadable" where the file is damaged, or has changed.
        """
        with self._lock:
            block = next((found for found in self._blocks if found.start <= row < found.end), None)
            if block is None:
                try:
                    block = self._find(row)
                # Of the file, of what it is compressed with, of values that are not what the footer says.
                except Exception as error:
                    self._open = None
                    raise BadItem(key, "unreadable", f"{self._rows.file_of(row)}: {_line(error)}") from error
            values = block.batch.slice(row - block.start, 1)
        return dict(zip(values.schema.names, (column[0].as_py() for column in values.columns), strict=True))

    def _find(self, row: int) -> _Block:
        """Reads on to the block of a row, or begins its row group anew where that is behind."""
        group = self._rows.group_of(row)
        file, place, first = self._rows.group(group)
        if self._open is None or self._open[0] != group or self._open[2] > row:
            self._open = (group, self._batches(file, place), first)
        _, batches, start = self._open
        for batch in batches:
            block = _Block(start, start + batch.num_rows, batch)
            start = block.end
            self._open = (group, batches, start)
            self._blocks.append(block)
            if row < block.end:
                return block
        raise ValueError(f"holds {start - first} rows in a row group of more: it has changed")

    def _batches(self, file: str, place: int) -> Iterator[Any]:
        # The stream in place of whole column chunks, as a row group may be the whole file.
        with (
            open_regular(file) as opened,
            _pyarrow(file).ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False) as table,
        ):
            metadata = table.metadata.row_group(place)
            chunks = [metadata.column(index) for index in range(metadata.num_columns)]
            num_bytes = sum(
                chunk.total_uncompressed_size for chunk in chunks if _is_of(chunk.path_in_schema, self._columns)
            )
            size = max(1, metadata.num_rows * _BLOCK_BYTES // max(num_bytes, 1))
            yield from table.iter_batches(
                min(size, metadata.num_rows), row_groups=[place], columns=self._columns, use_threads=False
            )


class ParquetRecords:
    """The rows of a Parquet file as a list's records; see `Records`.

    Args:
      path: the file.
      visit: called once, on opening, with the number of each row and what decides its key, label and control picture.
      light: names of those columns.

    Raises:
      InputError: see `ParquetRows`; there is no row.
    """

    def __init__(self, path: str | os.PathLike, visit: Callable[[int, Mapping], None], light: Sequence[str]):
        self.path = pathlib.Path(path).absolute()
        self._rows = ParquetRows([str(path)], self.path.parent)
        if not len(self._rows):
            raise InputError(f"{path}: the list has no records; make it again, or name another")
        self.names, self.digest = self._rows.names, self._rows.digest
        self._reader = self._rows.columns(*sorted(self.names))
        for index, row in enumerate(self._rows.all_of([name for name in light if name in self.names])):
            visit(index, _without_null(row))

    def __len__(self) -> int:
        return len(self._rows)

    def digest_of(self, items: range) -> str:
        """See `Records`."""
        return self._rows.digest_of(items)

    def name(self, index: int) -> str:
        """See `Records`."""
        return f"{self.path.name}#{index + 1}"

    def why_no_text(self, index: int) -> str:
        """See `Records`."""
        return f"{self.name(index)} holds text that is not UTF-8"

    def read(self, index: int) -> Mapping:
        """See `Records`."""
        return _without_null(self._reader.read(index, self.name(index)))


def _without_null(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _column(group: Any, column: int) -> list[int]:
    chunk = group.column(column)
    return [chunk.data_page_offset, chunk.total_compressed_size, chunk.num_values]


def _is_of(leaf: str, columns: Sequence[str]) -> bool:
    """Whether a leaf of the schema, "image.bytes", belongs to one of some columns or parts of columns."""
    return any(leaf == column or leaf.startswith(f"{column}.") for column in columns)


def _line(error: Exception) -> str:
    return next(itertools.chain(str(error).splitlines(), [type(error).__name__]))


def _pyarrow(file: str) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(f"{file}: Parquet is read by pyarrow: pip install pyarrow") from error
