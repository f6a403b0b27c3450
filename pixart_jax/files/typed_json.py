"""Small JSON files that people and other programs may have changed: read within bounds, each field with its type."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import stat
from collections.abc import Collection, Mapping
from typing import Any

from pixart_jax.errors import InputError

_MAX_BYTES = 64 << 20
_REQUIRED: Any = object()


def parse(data: bytes | str) -> Any:
    """What JSON text says, of finite numbers only.

    Raises:
      ValueError: it is no JSON, no UTF-8, nested deeper than Python can follow, or holds NaN or an infinity.
    """
    if isinstance(data, bytes):
        data = data.decode("utf-8-sig")
    # Found when all is read, because only then it is known which field it is.
    infinite: list[str] = []

    def number(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            infinite.append(digits[:40])
        return value

    try:
        values = json.loads(data, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if infinite:
        raise ValueError(f"{_infinite_field(values)} is {infinite[0]}, not a finite number")
    return values


def _infinite_field(values: Any) -> str:
    """The dotted name of the first number that is not finite."""
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        name, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return name.lstrip(".")[:80] or "what it holds"
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        left += reversed([(f"{name[:80]}.{key}", item) for key, item in items])
    return "a field"  # That a second one of its name took the place of.


def read_bytes(path: str | os.PathLike, cure: str, max_bytes: int = _MAX_BYTES) -> bytes:
    """What a small regular file holds; its size and kind are looked at first.

    Raises:
      InputError: it cannot be read, is a device, a pipe or a folder, or holds more than `max_bytes`.
    """
    try:
        # A pipe that nobody writes to would block here for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is not a regular file; {cure}")
            if found.st_size > max_bytes:
                raise InputError(f"{path} holds {found.st_size:,} bytes, where at most {max_bytes:,} belong; {cure}")
            return file.read(found.st_size)  # Not max_bytes, for which Python would take memory.
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {cure}") from error


@dataclasses.dataclass(frozen=True)
class Fields(Mapping[str, Any]):
    """The fields of one JSON object, each asked for with its type and range.

    Every method raises InputError, with the file, the field's dotted name and the cure, if a field has another type or
    lies outside, or is not there and has no default. JSON's null counts as not there.
    """

    path: pathlib.Path
    content: Mapping[str, Any]
    cure: str
    prefix: str = ""

    def __getitem__(self, key: str) -> Any:
        """The value as it is, for those who know what to do with any."""
        return self.content[key]

    def __iter__(self):
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def integer(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        """An integer in [low, high]; 2.0 is none."""
        expected = f"an integer from {low} to {high}"
        return self._take(key, default, expected, lambda value: type(value) is int and low <= value <= high)

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> float:
        """A finite number in [low, high], as a float."""
        expected = f"a number from {low:g} to {high:g}"
        value = self._take(key, default, expected, lambda value: type(value) in (int, float) and low <= value <= high)
        return value if value is default else float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._take(key, default, "true or false", lambda value: type(value) is bool)

    def text(self, key: str, default: Any = _REQUIRED, choices: Collection[str] | None = None) -> str:
        """A string; one of `choices`, where these are given."""
        expected = "a string" if choices is None else f"one of {', '.join(choices)}"
        fits = (lambda value: isinstance(value, str)) if choices is None else (lambda value: value in tuple(choices))
        return self._take(key, default, expected, fits)

    def sequence(self, key: str, of: type | tuple[type, ...], default: Any = _REQUIRED) -> list:
        """A list whose every item is of one of the types `of`; a bool is no int."""
        types = of if isinstance(of, tuple) else (of,)
        expected = f"a list of {' or '.join(kind.__name__ for kind in types)}"
        return self._take(
            key, default, expected, lambda value: isinstance(value, list) and all(type(item) in types for item in value)
        )

    def fields(self, key: str, default: Any = _REQUIRED) -> Fields:
        """The object that is a field's value."""
        value = self._take(key, default, "an object", lambda value: isinstance(value, dict))
        return value if value is default else Fields(self.path, value, self.cure, f"{self.prefix}{key}.")

    def error(self, key: str, expected: str) -> InputError:
        """The error of a field that is not what was expected."""
        found = json.dumps(self.content[key])[:80] if key in self.content else "missing"
        return InputError(f"{self.path}: {self.prefix}{key} is {found}, and should be {expected}; {self.cure}")

    def _take(self, key, default, expected, fits) -> Any:
        value = self.content.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not fits(value):
            raise self.error(key, expected)
        return value


def read_fields(path: str | os.PathLike, cure: str, max_bytes: int = _MAX_BYTES) -> Fields:
    """The JSON object that a file holds.

    Args:
      cure: what to do about a damaged file, as in "copy it again".

    Raises:
      InputError: the file cannot be read, is too large, is no JSON (see `parse`), or holds no object.
    """
    data = read_bytes(path, cure, max_bytes)
    try:
        values = parse(data)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; {cure}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object; {cure}")
    return Fields(pathlib.Path(path), values, cure)
