"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a hidden file beside `path`, then renames it; after an exception `path` is as it was."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_space(folder: str | os.PathLike, num_bytes: int) -> None:
    """Raises what a full disk does, before anything is written: writers of many files drown their error in logs."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC, f"no space left: {num_bytes / 1e6:,.1f} MB are to be written, {free / 1e6:,.1f} MB are free"
        )


def reason(error: Exception) -> str:
    """Why something could not be read or written, in one line; TensorStore says it in many."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else next(iter(str(error).splitlines()), type(error).__name__)


def fsync(path: str | os.PathLike) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
