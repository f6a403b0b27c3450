"""What is looked at before a file of weights is opened: that it is a file, and not what stands for one."""

from __future__ import annotations

import pathlib
import stat

from pixart_jax.errors import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"


def check_weight_file(path: pathlib.Path) -> None:
    """Raises InputError for a device or a pipe, which might never end, and for Git LFS's pointer."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):  # Its reader says what it looked for.
            return
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is a device or a pipe; name a file of weights")
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if head == _POINTER:
        raise InputError(
            f"{path} is damaged: it is Git LFS's pointer to the file, not the file; run git lfs pull where it was "
            "cloned, or download the file"
        )
