"""`skipped.jsonl` beside a set: the items of the source that are not in it, one a line, each with its reason."""

from __future__ import annotations

import collections
import pathlib

from pixart_jax.errors import InputError
from pixart_jax.files import open_regular
from pixart_jax.files.typed_json import parse


def skipped_reasons(path: pathlib.Path) -> collections.Counter[str]:
    """How many items were skipped for which reason.

    Raises:
      InputError: the file cannot be read, or a line says no reason.
    """
    reasons: collections.Counter[str] = collections.Counter()
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    reasons[parse(line)["reason"]] += 1
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise InputError(
                        f'{path}: line {number} has no "reason" ({error!r:.200}); remove the file'
                    ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; remove the file") from error
    return reasons
