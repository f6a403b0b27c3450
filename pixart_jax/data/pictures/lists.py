"""Pictures named by a list of records: the reference's format (spec §6.2) and a little more."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import SupportsIndex

from pixart_jax.data.picture_formats import why_not_read
from pixart_jax.data.pictures.base import (
    BadItem,
    Picture,
    Words,
    checked_index,
    path_bytes,
    printable,
    printable_path,
    read_file,
    shown,
    weighed,
)
from pixart_jax.data.pictures.controls import MARK
from pixart_jax.data.pictures.fields import PATH_FIELDS, Fields, is_label
from pixart_jax.data.pictures.folders import pictures_below
from pixart_jax.data.pictures.json_records import JsonRecords
from pixart_jax.data.pictures.record_files import Records
from pixart_jax.errors import InputError


class ListPictures:
    """The pictures of a list of records: .json, .jsonl, .csv, .tsv or .parquet, in its order.

    Fields of a record: the path in one of `fields.PATH_FIELDS`; captions in `captions`, a list of texts or of {"text",
    "weight"}, or else in `prompt`, `sharegpt4v`, `caption`, `text`, unless others were named; `label`, a whole number;
    `control`, its control picture's path (see `controls`). Others are not read: height and width are the picture's. The
    key is the path as written; where a path comes again, "#2", "#3" ... is appended. Paths may be absolute and may lead
    out of the list's folder: a list reads whatever its reader may read, as long as it is a picture.

    Opening parses the list once, ten seconds for a million records, and keeps 16 bytes of each.

    Args:
      path: the list.
      data_dir: folder that paths are relative to; None for the list's own.
      fields: what is read of a record.
      records: what reads the list.
      folder: whose pictures the list should name; those that it does not are counted in `others`.

    Raises:
      InputError: of `records`; a field that was named is in no record, or a table has no column of paths.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        data_dir: str | os.PathLike | None = None,
        fields: Fields | None = None,
        records: Callable[[str | os.PathLike, Callable[[int, Mapping], None]], Records] = JsonRecords,
        folder: str | os.PathLike | None = None,
    ):
        self._fields = fields = fields or Fields()
        # Every key given out, and for each path the last number behind it.
        seen: dict[str, int] = {}
        self._suffixes: dict[int, str] = {}
        num_classes = 0
        self.num_controls = 0

        def visit(index: int, record: Mapping) -> None:
            nonlocal num_classes
            self.num_controls += record.get(MARK) is not None
            if is_label(record.get("label")):
                num_classes = max(num_classes, record["label"] + 1)
            name = fields.path(record)
            if not isinstance(name, str):
                return
            key = name
            if name in seen:
                number = seen[name] + 1
                while (key := f"{name}#{number}") in seen:
                    number += 1
                seen[name] = number
                self._suffixes[index] = f"#{number}"
            seen.setdefault(key, 1)

        self._records = records(path, visit)
        fields.check_named(self._records.names, path)
        if records is not JsonRecords and not (fields.picture or self._records.names & set(PATH_FIELDS)):
            raise InputError(
                f"{path}: has no column of pictures or their paths ({', '.join(PATH_FIELDS)}); name it by "
                f"--image-column or config.data.image_column, one of {', '.join(sorted(self._records.names))}"
            )
        self._data_dir = os.fsencode(os.path.abspath(data_dir) if data_dir else self._records.path.parent)
        self.others = {} if folder is None else _beside(folder, self._records.path, seen)
        self.class_names = tuple(map(str, range(num_classes)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        index = checked_index(index, len(self))
        record, path, key = self._record(index)
        _, captions, label = self._words(index, record, key)
        if not captions and label is None:
            there = f"{self._records.name(index)} has neither a caption nor a label"
            raise BadItem(key, "caption-missing", f"{there}; looked for {', '.join(self._fields.captions)}")
        return Picture(key=key, data=read_file(self._on_disk(path, key), key), captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`."""
        index = checked_index(index, len(self))
        record, _, key = self._record(index)
        return self._words(index, record, key)

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`."""
        _, path, key = self._record(checked_index(index, len(self)))
        return read_file(self._on_disk(path, key), key)

    def file(self, index: SupportsIndex) -> bytes:
        """See `Pictures.file`."""
        _, path, key = self._record(checked_index(index, len(self)))
        return self._on_disk(path, key)

    def control(self, index: SupportsIndex) -> bytes | None:
        """See `controls.NamesControls`."""
        file = self.control_file(index)
        if file is None:
            return None
        _, _, key = self._record(checked_index(index, len(self)))
        try:
            return read_file(file, key)
        except BadItem as error:
            reason = "control-missing" if error.reason == "missing-file" else error.reason
            raise BadItem(key, reason, f"its control picture: {error.message}") from error

    def control_file(self, index: SupportsIndex) -> bytes | None:
        """See `controls.NamesControls`."""
        record, _, key = self._record(checked_index(index, len(self)))
        path = record.get(MARK)
        if path is None:
            return None
        if not isinstance(path, str) or not path:
            raise BadItem(key, "bad-record", f"{MARK} must name a file, not {shown(path)}")
        return self._on_disk(path, key)

    def controls_digest(self, items: range) -> str:
        """See `controls.NamesControls`: the records name them, and their sizes are not heeded, as the pictures' are
        not."""
        return ""

    def _record(self, index: int) -> tuple[Mapping, str, str]:
        """(record, its path, key) of an item."""
        record = self._records.read(index)
        path = self._fields.path(record)
        if not isinstance(path, str) or not path:
            raise BadItem(self._records.name(index), "bad-record", f"path must name a file, not {shown(path)}")
        return record, path, printable(path + self._suffixes.get(index, ""))

    def _words(self, index: int, record: Mapping, key: str) -> Words:
        label = self._fields.label(record, key)
        why_no_text = functools.partial(self._records.why_no_text, index)
        return Words(key, weighed(self._fields.texts(record, key), key, why_no_text), label)

    def _on_disk(self, path: str, key: str) -> bytes:
        """Of the picture. A list is UTF-8, and so is what its paths mean, whatever the locale's file names are in."""
        if problem := why_not_read(path):
            raise BadItem(key, "unsupported", f"it is {problem}")
        try:
            on_disk = path_bytes(path)
            if not os.path.lexists(os.path.join(self._data_dir, on_disk)):
                on_disk = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise BadItem(key, "unreadable", f"its path is no text: {error.reason}") from error
        except ValueError:  # a NUL, of which reading speaks
            pass
        return os.path.join(self._data_dir, on_disk)

    def fingerprint(self) -> str:
        """Of the list's bytes, the weights and the fields that were named; known since opening. The pictures' sizes are
        not in it."""
        described = [self._records.digest, self._fields.weights, *self._fields.digest]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; of the records as they are written."""
        return self._records.digest_of(items)

    def __repr__(self) -> str:
        return f"ListPictures({str(self._records.path)!r}, data_dir={printable_path(self._data_dir)!r})"


def _beside(folder: str | os.PathLike, path: pathlib.Path, named: Collection[str]) -> dict[str, int]:
    """What else is in a folder: pictures that a list does not name, and files that are none."""
    others: collections.Counter[str] = collections.Counter()
    found = pictures_below(os.fsencode(os.path.abspath(folder)), others)
    names = {os.path.normpath(name) for name in named}
    others[f"picture not named in {path.name}"] = sum(os.path.normpath(name) not in names for name in found)
    others[path.suffix] -= 1
    return dict(+others)
