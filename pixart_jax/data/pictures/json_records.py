"""Lists of records, .json arrays or .jsonl lines, by number: the records stay on disk."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from pixart_jax.data.pictures.base import GREATEST_WEIGHT, LEAST_WEIGHT, MOST_CLASSES, BadItem, shown
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular

# A hundred million records: what is larger is a hole in a sparse file.
_MOST_BYTES = 1 << 35

# The reference's two, its own prompt and the long one by ShareGPT4V (spec §6.2), and what other tools call theirs.
CAPTION_FIELDS = ("prompt", "sharegpt4v", "caption", "text")


class JsonRecords:
    """The records of a list. Keeps 16 bytes of each, and reads it from the file when asked.

    A .json file holds one array; all of it must be JSON. Of a .jsonl file lines that are no JSON are records that
    cannot be used, as long as there are others; blank lines are left out.

    Args:
      path: .json, or .jsonl for one record a line; UTF-8.
      visit: called once, on opening, with the number and the value of each record that is a JSON object.

    Attributes:
      path: absolute.
      digest: hex SHA-256 of the whole file.

    Raises:
      InputError: the file is missing or unreadable, holds no JSON (names the line) or no record.
    """

    def __init__(self, path: str | os.PathLike, visit: Callable[[int, Mapping], None]):
        self.path = pathlib.Path(path).absolute()
        try:
            with open_regular(self.path) as file:
                if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
                    raise ValueError(f"it holds {size:,} bytes, and at most {_MOST_BYTES:,} are read")
                data = file.read()
        except (OSError, ValueError, MemoryError) as error:
            problem = "it does not fit into memory" if isinstance(error, MemoryError) else error
            raise InputError(f"cannot read the list {path}: {problem}") from error
        self.digest = hashlib.sha256(data).hexdigest()
        spans: list[tuple[int, int]] = []
        scan = _scan_lines if self.path.suffix.lower() == ".jsonl" else _scan_array
        for start, end, record in scan(data, self.path):
            if isinstance(record, dict):
                visit(len(spans), record)
            spans.append((start, end))
        if not spans:
            raise InputError(f"{path}: the list has no records; make it again, or name another")
        self._spans = np.asarray(spans, np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def digest_of(self, items: range) -> str:
        """Hex SHA-256 of some of the records, and of what stands between them; "" when the file cannot be read."""
        if not len(items):
            return ""
        start, end = int(self._spans[items[0], 0]), int(self._spans[items[-1], 1])
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return hashlib.sha256(file.read(end - start)).hexdigest()
        except OSError:
            return ""

    def name(self, index: int) -> str:
        """How to call a record that has no usable key: the list's third is list.json#3."""
        return f"{self.path.name}#{index + 1}"

    def read(self, index: int) -> dict:
        """The record.

        Raises:
          BadItem: "bad-record" when it is no JSON object, "unreadable" when the file cannot be read any more.
        """
        start, end = map(int, self._spans[index])
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise BadItem(self.name(index), "unreadable", f"{self.path}: {error}") from error
        try:
            record = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise BadItem(self.name(index), "bad-record", f"no JSON: {_problem(error)}") from error
        if not isinstance(record, dict):
            raise BadItem(self.name(index), "bad-record", f"not a JSON object but {type(record).__name__}")
        return record


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Sampling weights of caption fields; 0 leaves a field out.

    Raises:
      InputError: no caption field's name, or no weight.
    """
    for field, weight in weights.items():
        if field not in CAPTION_FIELDS:
            raise InputError(f"caption_weights: no caption field is called {field!r}; know {', '.join(CAPTION_FIELDS)}")
        if weight != 0 and not _is_weight(weight):
            raise InputError(f"caption_weights[{field!r}] must be 0, or {_WEIGHTS}, not {weight!r}")
    return dict(weights)


def record_captions(record: Mapping, weights: Mapping[str, float], key: str) -> list[tuple[str, float]]:
    """(text, weight) of a record's captions, empty ones and all: those in its `captions`, else in CAPTION_FIELDS.

    `captions` without any text in it hides no other field.

    Equal weights where none are given, as the reference mixes a prompt and its long form (spec §6.2). A field that is
    null is not there.

    Raises:
      BadItem: "bad-record" for a caption or a weight of the wrong type.
    """

    def fail(field: str, problem: str) -> NoReturn:
        raise BadItem(key, "bad-record", f"{field} {problem}")

    found: list[tuple[str, Any, Any]] = []
    if record.get("captions") is not None:
        if not isinstance(record["captions"], list):
            fail("captions", f"must be a list, not {shown(record['captions'])}")
        for number, entry in enumerate(record["captions"]):
            if not isinstance(entry, dict):
                entry = {"text": entry}
            found.append((f"captions[{number}]", entry.get("text"), entry.get("weight", 1.0)))
    if not any(not isinstance(text, str) or text.strip() for _, text, _ in found):
        empty = found
        found = [(field, record[field], weights.get(field, 1.0)) for field in CAPTION_FIELDS if field in record]
        found = [(field, text, weight) for field, text, weight in found if text is not None and weight > 0]
        found = found or empty
    for field, text, weight in found:
        if not isinstance(text, str):
            fail(field, f"must be text, not {shown(text)}")
        if not _is_weight(weight):
            fail(field, f"has weight {shown(weight)}; it must be {_WEIGHTS}")
    return [(text, float(weight)) for _, text, weight in found]


def record_label(record: Mapping, key: str) -> int | None:
    """Raises BadItem "bad-record" for a label that is none."""
    label = record.get("label")
    if label is not None and not is_label(label):
        raise BadItem(key, "bad-record", f"label must be a number from 0 to {MOST_CLASSES - 1}, not {shown(label)}")
    return label


def is_label(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES


_WEIGHTS = f"a number from {LEAST_WEIGHT} to {GREATEST_WEIGHT:.0f}"


def _is_weight(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return LEAST_WEIGHT <= value <= GREATEST_WEIGHT


def _scan_array(data: bytes, path: pathlib.Path) -> Iterator[tuple[int, int, object]]:
    """(first byte, byte behind the last, value) of each element."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the list as UTF-8") from error
    position = _skip_space(text, 1 if text.startswith("\ufeff") else 0)

    def fail(position: int, problem: object, cause: Exception | None = None) -> NoReturn:
        line = text.count("\n", 0, position) + 1
        raise InputError(f"{path}: line {line}: {problem}; the list must be one JSON array of records") from cause

    if text[position : position + 1] != "[":
        fail(position, f"begins with {text[position : position + 1]!r}, not with [")
    decoder, byte, counted = json.JSONDecoder(), 0, 0
    position = _skip_space(text, position + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            fail(error.pos, error.msg, error)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
            fail(position, _problem(error), error)
        byte += len(text[counted:position].encode())
        size = len(text[position:end].encode())
        yield byte, byte + size, value
        byte, counted = byte + size, end
        position = _skip_space(text, end)
        mark = text[position : position + 1]
        if mark == "]":
            break
        if mark != ",":
            fail(position, f"expected , or ] and found {text[position : position + 1]!r}")
        position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        fail(position, f"more text behind the array: {text[position : position + 1]!r}")


def _problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _scan_lines(data: bytes, path: pathlib.Path) -> Iterator[tuple[int, int, object]]:
    """Like `_scan_array`, of each line; the value of one that is no JSON is None."""
    position = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    first_bad, any_good, line = None, False, 0
    while position < len(data):
        end = data.find(b"\n", position)
        end = len(data) if end < 0 else end
        content, line = data[position:end], line + 1
        if content.strip():
            value = None
            try:
                value = json.loads(content.decode())
                any_good = any_good or isinstance(value, dict)
            except (ValueError, RecursionError) as error:
                first_bad = first_bad or f"line {line}: {_problem(error)}"
            yield position, end, value
        position = end + 1
    if first_bad and not any_good:
        raise InputError(f"{path}: no line is a JSON record; {first_bad}")
