"""A file of records, by number: the records stay on disk."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pixart_jax.data.pictures.base import BadItem, half_a_pair
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular

# A hundred million records: what is larger is a hole in a sparse file.
_MOST_BYTES = 1 << 35


class Records(Protocol):
    """Records by number, as `ListPictures` reads them.

    Attributes:
      path: the file, absolute; of several the first.
      digest: of all that they hold.
      names: fields that records have.
    """

    path: pathlib.Path
    digest: str
    names: frozenset[str]

    def __len__(self) -> int: ...

    def digest_of(self, items: range) -> str:
        """Of some of the records."""

    def name(self, index: int) -> str:
        """How to call a record that has no usable key: the list's third is list.json#3."""

    def why_no_text(self, index: int) -> str:
        """Of a record with a string that does not encode as UTF-8."""

    def read(self, index: int) -> Mapping:
        """The record.

        Raises:
          BadItem: "bad-record" when it is none, "unreadable" when the file cannot be read any more.
        """


class RecordFile:
    """Where each record of a text file begins and ends: 16 bytes of each are kept.

    Args:
      path: the file.
      spans: (first byte, byte behind the last) of each record.
      digest: hex SHA-256 of the whole file.

    Raises:
      InputError: there is no record.
    """

    def __init__(self, path: pathlib.Path, spans: list[tuple[int, int]], digest: str):
        self.path, self.digest = path, digest
        if not spans:
            raise InputError(f"{path}: the list has no records; make it again, or name another")
        self._spans = np.asarray(spans, np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def digest_of(self, items: range) -> str:
        """Hex SHA-256 of some of the records, and of what stands between them; "" when the file cannot be read."""
        if not len(items):
            return ""
        try:
            return hashlib.sha256(
                self._bytes(int(self._spans[items[0], 0]), int(self._spans[items[-1], 1]))
            ).hexdigest()
        except OSError:
            return ""

    def name(self, index: int) -> str:
        """See `Records`."""
        return f"{self.path.name}#{index + 1}"

    def why_no_text(self, index: int) -> str:
        """See `Records`; of JSON."""
        return half_a_pair()

    def written(self, index: int) -> bytes:
        """The record as it is written.

        Raises:
          BadItem: "unreadable".
        """
        try:
            return self._bytes(*map(int, self._spans[index]))
        except OSError as error:
            raise BadItem(self.name(index), "unreadable", f"{self.path}: {error}") from error

    def _bytes(self, start: int, end: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def read_list(path: str | os.PathLike) -> bytes:
    """A whole list.

    Raises:
      InputError: it is missing, unreadable or too large.
    """
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
                raise ValueError(f"it holds {size:,} bytes, and at most {_MOST_BYTES:,} are read")
            return file.read()
    except (OSError, ValueError, MemoryError) as error:
        problem = "it does not fit into memory" if isinstance(error, MemoryError) else error
        raise InputError(f"cannot read the list {path}: {problem}") from error
