"""Pictures named by a list of records: the reference's format (spec §6.2) and a little more."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
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
from pixart_jax.data.pictures.json_records import JsonRecords, checked_weights, is_label, record_captions, record_label


class ListPictures:
    """The pictures of a .json or .jsonl list, in its order.

    Fields of a record: `path`, or `file_name`; captions in `prompt`, `sharegpt4v`, `caption`, `text`, or else in
    `captions`, a list of texts or of {"text", "weight"}; `label`, a whole number; `control`, its control picture's path
    (see `controls`). Others are not read: height and width are the picture's. The key is the path as written; where a
    path comes again, "#2", "#3" ... is appended. Paths may be absolute and may lead out of the list's folder: a list
    reads whatever its reader may read, as long as it is a picture.

    Opening parses the list once, ten seconds for a million records, and keeps 16 bytes of each.

    Args:
      path: the list.
      data_dir: folder that paths are relative to; None for the list's own.
      caption_weights: sampling weight by name of the caption field; 1 where not given, 0 leaves the field out.

    Raises:
      InputError: see `JsonRecords` and `checked_weights`.
    """

    def __init__(
        self, path: str | os.PathLike, *, data_dir: str | os.PathLike | None, caption_weights: Mapping[str, float]
    ):
        self._weights = checked_weights(caption_weights)
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
            name = _path_of(record)
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

        self._records = JsonRecords(path, visit)
        self._data_dir = os.fsencode(os.path.abspath(data_dir) if data_dir else self._records.path.parent)
        self.others: dict[str, int] = {}
        self.class_names = tuple(map(str, range(num_classes)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        index = checked_index(index, len(self))
        record, path, key = self._record(index)
        _, captions, label = self._words(record, key)
        if not captions and label is None:
            raise BadItem(key, "caption-missing", f"{self._records.name(index)} has neither a caption nor a label")
        return Picture(key=key, data=read_file(self._on_disk(path, key), key), captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`."""
        record, _, key = self._record(checked_index(index, len(self)))
        return self._words(record, key)

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

    def _record(self, index: int) -> tuple[dict, str, str]:
        """(record, its path, key) of an item."""
        record = self._records.read(index)
        path = _path_of(record)
        if not isinstance(path, str) or not path:
            raise BadItem(self._records.name(index), "bad-record", f"path must name a file, not {shown(path)}")
        return record, path, printable(path + self._suffixes.get(index, ""))

    def _words(self, record: Mapping, key: str) -> Words:
        label = record_label(record, key)
        return Words(key, weighed(record_captions(record, self._weights, key), key), label)

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
        """Of the list's bytes and the weights; known since opening. The pictures' sizes are not in it."""
        return hashlib.sha256(json.dumps([self._records.digest, self._weights], sort_keys=True).encode()).hexdigest()

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; of the records as they are written."""
        return self._records.digest_of(items)

    def __repr__(self) -> str:
        return f"ListPictures({str(self._records.path)!r}, data_dir={printable_path(self._data_dir)!r})"


def _path_of(record: Mapping) -> object:
    """`path`, or what Hugging Face's imagefolder calls it."""
    return record.get("path", record.get("file_name"))
