"""Pictures in Parquet files, as Hugging Face's data sets and img2dataset store them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, SupportsIndex

from pixart_jax.data.pictures.base import (
    MOST_CLASSES,
    MOST_PICTURE_BYTES,
    BadItem,
    Picture,
    Words,
    check_size,
    checked_index,
    path_bytes,
    read_file,
    shown,
    weighed,
)
from pixart_jax.data.pictures.controls import MARK
from pixart_jax.data.pictures.fields import Fields
from pixart_jax.data.pictures.parquet_rows import ParquetRows
from pixart_jax.errors import InputError

# Of several columns that can hold pictures the first of these is taken; others must be named.
_PICTURES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes", "bytes")
# Of control pictures: ours, and Hugging Face's.
_CONTROLS = (MARK, "conditioning_image")


class ParquetPictures:
    """The rows of Parquet files that hold pictures, in the order of the files.

    A picture is a column of bytes, or of {"bytes", "path"}, as Hugging Face has it; where its bytes are null, the file
    of its path, relative to the Parquet file. Captions are in the columns that a list's record has as fields, texts or
    lists of texts; the label is a whole number in `label`, whose names the file may tell (ClassLabel; -1 is none). A
    control picture is in `control` or `conditioning_image`. The key is the file's name and the row's number in it.
    Opening reads the footers, and labels whose names are not told; see `ParquetRows` for what reading costs.

    Args:
      rows: of the files.
      fields: what is read.

    Raises:
      InputError: a column that was named is not there, or the picture's must be named.
    """

    def __init__(self, rows: ParquetRows, *, fields: Fields | None = None):
        self._fields, self._rows = fields or Fields(), rows
        fields, names, where = self._fields, rows.names, rows.files[0]
        if not len(self._rows):
            raise InputError(f"{where}: has no rows; name another")
        fields.check_named(names, where)
        self._picture = _picture_column(self._rows, fields, where)
        self._captions = [name for name in (*fields.captions, "captions") if name in names]
        if fields.chosen:
            self._captions = list(fields.captions)
        label = ["label"] if "label" in names and _is_integer(self._rows.schema.field("label")) else []
        self._control = next((name for name in _CONTROLS if name in names and _holds(self._rows, name)), None)
        self._read_words = self._rows.columns(*self._captions, *label) if self._captions or label else None
        self._read_picture = self._rows.columns(self._picture)
        self._read_control = self._rows.columns(self._control) if self._control else None
        self.num_controls = len(self._rows) if self._control else 0
        self.class_names = _class_names(self._rows) if label else ()
        self.others: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        key, captions, label = self.words(index)
        if not captions and label is None:
            looked = ", ".join(self._captions) or f"none of its columns {', '.join(sorted(self._rows.names))}"
            message = f"it has neither a caption ({looked}) nor a label; is it in another column, to be named?"
            raise BadItem(key, "caption-missing", message)
        return Picture(key=key, data=self.data(index), captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`."""
        index, key = self._key(index)
        if self._read_words is None:
            return Words(key, (), None)
        row = dict(self._read_words.read(index, key))
        if row.get("label") == -1:  # Hugging Face's mark of test splits whose labels are secret.
            row["label"] = None
        return Words(key, weighed(self._fields.texts(row, key), key), self._fields.label(row, key))

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`."""
        index, key = self._key(index)
        found = self._bytes(self._read_picture.read(index, key)[self._picture], index, key)
        if found is None:
            raise BadItem(key, "image-missing", f"its {self._picture} is null")
        return found

    def file(self, index: SupportsIndex) -> None:
        """See `Pictures.file`."""
        return None

    def control(self, index: SupportsIndex) -> bytes | None:
        """See `controls.NamesControls`."""
        index, key = self._key(index)
        if self._read_control is None or self._control is None:
            return None
        return self._bytes(self._read_control.read(index, key)[self._control], index, key)

    def control_file(self, index: SupportsIndex) -> None:
        """See `controls.NamesControls`."""
        return None

    def controls_digest(self, items: range) -> str:
        """See `controls.NamesControls`: `digest` is of all columns."""
        return ""

    def _bytes(self, value: Any, index: int, key: str) -> bytes | None:
        if isinstance(value, Mapping):
            path = value.get("path")
            if (value := value.get("bytes")) is None and isinstance(path, str) and path:
                folder = os.path.dirname(self._rows.file_of(index))
                try:
                    return read_file(os.path.join(os.fsencode(folder), path_bytes(path)), key)
                except UnicodeEncodeError as error:
                    raise BadItem(key, "unreadable", f"its path is no text: {error.reason}") from error
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise BadItem(key, "bad-record", f"{self._picture} must be bytes, not {shown(value)}")
        check_size(len(value), key, MOST_PICTURE_BYTES)
        return value

    def _key(self, index: SupportsIndex) -> tuple[int, str]:
        index = checked_index(index, len(self))
        name, row = self._rows.place(index)
        return index, f"{name}/{row:06d}"

    def fingerprint(self) -> str:
        """Of the files' names, sizes and footers, and what is read of them; known since opening."""
        return self._with_fields(self._rows.digest)

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; of the row groups that hold them."""
        return self._with_fields(self._rows.digest_of(items))

    def _with_fields(self, digest: str) -> str:
        described = [digest, self._picture, self._captions, dict(self._fields.weights), self._control]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"ParquetPictures({self._rows.files!r})"


def holds_pictures(rows: ParquetRows) -> bool:
    """Whether a column holds pictures; else the rows may be a list of paths."""
    return any(_holds(rows, name) for name in rows.names)


def _picture_column(rows: ParquetRows, fields: Fields, where: str) -> str:
    found = [name for name in sorted(rows.names) if _holds(rows, name)]
    if fields.picture:
        if fields.picture not in found:
            raise InputError(
                f"{where}: column {fields.picture!r} holds no pictures but {rows.schema.field(fields.picture).type}; "
                f"pictures are bytes or {{bytes, path}}, as in {', '.join(found) or 'none of its columns'}"
            )
        return fields.picture
    known = [name for name in _PICTURES if name in found]
    found = [name for name in found if name not in _CONTROLS]
    if not known and len(found) != 1:
        raise InputError(
            f"{where}: which column is the picture? Name it by --image-column or config.data.image_column, one of "
            f"{', '.join(found)}"
        )
    return (known or found)[0]


def _holds(rows: ParquetRows, name: str) -> bool:
    """Whether a column is of bytes, or of Hugging Face's structure of bytes and path."""
    kind = rows.schema.field(name).type
    if str(kind).startswith("struct"):
        return any(part.name == "bytes" and _is_binary(part.type) for part in kind)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_integer(field: Any) -> bool:
    return str(field.type).removeprefix("u").startswith("int")


def _class_names(rows: ParquetRows) -> tuple[str, ...]:
    """As Hugging Face writes them into the file; else the numbers up to the greatest label."""
    try:
        told = json.loads((rows.schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
        if isinstance(told, list) and all(isinstance(name, str) for name in told):
            return tuple(told)
    except (KeyError, TypeError, ValueError):
        pass
    greatest = max((row["label"] for row in rows.all_of(["label"]) if row["label"] is not None), default=-1)
    return tuple(map(str, range(min(greatest + 1, MOST_CLASSES))))
