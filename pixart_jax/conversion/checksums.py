"""Checksums of the parameters that conversion has written: what is read later is what was written.

They stand in `params/checksums.json`, as a training run keeps them in its checkpoints. What was written
before there were any has no such file, and is read unchecked.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from pixart_jax.checkpoints.checksums import array_checksum
from pixart_jax.checkpoints.contents import Damaged, read_contents, write_contents
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields

# In `params/`, beside what Orbax writes there.
_FILE = "checksums.json"
_ITEM = "params"
_CURE = "convert the weights again, or copy them again from where they are whole"


def write_checksums(params: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes those of the arrays that a `params/` holds, by '/'-joined path."""
    arrays = {path: arrays[path] for path in sorted(arrays)}
    contents = write_contents({_ITEM: arrays}, map(array_checksum, arrays.values()), {})
    (params / _FILE).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def read_checksums(params: pathlib.Path) -> dict[str, int | None]:
    """'/'-joined path to `array_checksum` of each array of a `params/`; none where none were written.

    Raises:
      InputError: they are damaged themselves.
    """
    path = params / _FILE
    if not path.exists():
        return {}
    fields = dict(read_fields(path, _CURE))
    try:
        recorded, _ = read_contents(fields)
        return {name: array.checksum for name, array in recorded[_ITEM].items()}
    except (Damaged, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: its text is not what was written; {_CURE}") from error


def check_array(params: pathlib.Path, name: str, found: int, recorded: Mapping[str, int | None]) -> None:
    """Raises InputError unless an array of `params/` has the checksum that was recorded, if one was."""
    if recorded.get(name) not in (None, found):
        raise InputError(f"{params}: {name} is damaged: its numbers are not those that were written; {_CURE}")
