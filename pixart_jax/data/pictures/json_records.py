"""Lists of records, .json arrays or .jsonl lines, by number: the records stay on disk."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from pixart_jax.data.pictures.base import TO_UTF8, BadItem
from pixart_jax.data.pictures.record_files import RecordFile, read_list
from pixart_jax.errors import InputError


class JsonRecords(RecordFile):
    """The records of a list. Keeps 16 bytes of each, and reads it from the file when asked.

    A .json file holds one array; all of it must be JSON. Of a .jsonl file lines that are no JSON are records that
    cannot be used, as long as there are others; blank lines are left out.

    Args:
      path: .json, or .jsonl for one record a line; UTF-8.
      visit: called once, on opening, with the number and the value of each record that is a JSON object.

    Attributes:
      path, digest, names: see `Records`.

    Raises:
      InputError: the file is missing or unreadable, holds no JSON (names the line) or no record.
    """

    def __init__(self, path: str | os.PathLike, visit: Callable[[int, Mapping], None]):
        data = read_list(path)
        path = pathlib.Path(path).absolute()
        spans: list[tuple[int, int]] = []
        names: set[str] = set()
        scan = _scan_lines if path.suffix.lower() == ".jsonl" else _scan_array
        for start, end, record in scan(data, path):
            if isinstance(record, dict):
                visit(len(spans), record)
                names.update(record)
            spans.append((start, end))
        super().__init__(path, spans, hashlib.sha256(data).hexdigest())
        self.names = frozenset(names)

    def read(self, index: int) -> dict:
        """See `Records`."""
        data = self.written(index)
        try:
            record = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise BadItem(self.name(index), "bad-record", f"no JSON: {_problem(error)}") from error
        if not isinstance(record, dict):
            raise BadItem(self.name(index), "bad-record", f"not a JSON object but {type(record).__name__}")
        return record


def _scan_array(data: bytes, path: pathlib.Path) -> Iterator[tuple[int, int, object]]:
    """(first byte, byte behind the last, value) of each element."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8 ({error.reason}); {TO_UTF8}") from error
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
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason}); {TO_UTF8}"
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
