"""Several files by one name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from pixart_jax.errors import InputError


def expand(pattern: str, ending: str) -> Iterator[str]:
    """The files of a path, a glob or ranges in braces, in order.

    Args:
      ending: of such files, for the message.

    Raises:
      InputError: nothing matches, or a file of the range is missing; at the first, so that no range is too long.
    """
    if os.path.exists(pattern):
        yield pattern
    elif "{" in pattern:
        for path in _expand_braces(pattern):
            if not os.path.exists(path):
                raise InputError(f"{path}, of {pattern}, is not there; copy it, or make the range smaller")
            yield path
    else:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise InputError(
                f"{pattern}: no such file; name a {ending}, a glob such as *{ending} or a range {{00000..00099}}"
            )
        yield from paths


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise InputError(f"{pattern}: the range {match[0]} is empty; write the smaller number first")
    for number in range(first, last + 1):
        head = f"{pattern[: match.start()]}{number:0{len(match[1])}d}"
        yield from (head + tail for tail in _expand_braces(pattern[match.end() :]))
