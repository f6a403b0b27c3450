"""Which of a folder's files hold its weights; and that they are files, and not what stands for one."""

from __future__ import annotations

import pathlib
import re
import stat
from collections.abc import Sequence

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


def find_weights(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """The file of weights in a folder, or the index of several; None where there is none.

    Args:
      names: of the files that may hold all of them, the first that is there, or has an index, before the others.

    Raises:
      InputError: there are both a file and shards of that name, of which one is left over from an older save. diffusers
        would take the shards and transformers the file, and nothing tells which is meant. Or there is nothing but a
        variant, such as fp16, or shards without their index.
    """
    for name in names:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.exists() and index.exists():
            raise InputError(
                f"{folder} holds weights twice, {name} and the shards of {index.name}: they were saved at different "
                "times; move the older ones away"
            )
        if file.exists() or index.exists():
            return file if file.exists() else index
    stems = "|".join(re.escape(name.rpartition(".")[0]) for name in names)
    pattern = re.compile(rf"({stems})[.-].+\.(safetensors|bin)")
    if found := sorted(path.name for path in folder.glob("*") if pattern.fullmatch(path.name)):
        raise InputError(
            f"{folder} holds weights only as a variant, such as fp16, or in shards without an index: "
            f"{', '.join(found[:3])}; {' or '.join(names)} should be there: download that. Where there is only the "
            "variant, rename its file so, or open it with from_pretrained(..., variant=...) and save_pretrained"
        )
    return None
