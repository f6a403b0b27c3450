"""A converted model's place: owned by one process, and there whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import time
from collections.abc import Iterator

from safetensors import SafetensorError

from pixart_jax.errors import InputError
from pixart_jax.files import fsync
from pixart_jax.files.locks import hold

# Seconds between looks at a folder that is removed; how many there are at most, and how many of them must not find it.
_BETWEEN_LOOKS, _LOOKS, _AWAY = 0.05, 100, 4


@contextlib.contextmanager
def claimed(target: pathlib.Path) -> Iterator[None]:
    """Owns a place, and makes the folders above it; those that are new go again if nothing comes into them.

    Raises:
      InputError: the target exists, another process owns it, or it cannot be written.
    """
    refuse_existing(target)
    folder = _folder(target)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if folder.is_file():  # Left by an earlier version that was killed.
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(new)
        raise InputError(f"{target.absolute()} cannot be written: {error}") from error
    try:
        with hold(folder / "lock", f"DST {target}"):
            refuse_existing(target)
            try:
                yield
            finally:
                # Also what a killed conversion has left there.
                for path in folder.iterdir():
                    if path.name != "lock":
                        _remove(path)
    finally:
        _remove_empty(new or [folder])


@contextlib.contextmanager
def published(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, beside a target that is claimed; it becomes the target once all is on disk.

    Raises:
      InputError: the target exists by then, or cannot be written.
    """
    target = target.absolute()
    temporary = _folder(target) / target.name
    try:
        _remove(temporary)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            fsync(path)
        refuse_existing(target)
        temporary.rename(target)
        fsync(target.parent)
    # What torch and safetensors raise when a disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written: {error}") from error


def refuse_existing(target: pathlib.Path) -> None:
    """Raises InputError if there is something."""
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or name another")


def _folder(target: pathlib.Path) -> pathlib.Path:
    """Where a target's lock is, and what is not whole yet."""
    target = target.absolute()
    return target.with_name(f".{target.name}.incomplete")


def _remove_empty(folders: list[pathlib.Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _remove(path: pathlib.Path) -> None:
    """Where writing has failed, TensorStore's threads still write other arrays, and make folders anew: one is gone once
    it has stayed away for a while."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    away = 0
    for _ in range(_LOOKS):
        shutil.rmtree(path, ignore_errors=True)
        away = 0 if path.exists() else away + 1
        if away == _AWAY:
            return
        time.sleep(_BETWEEN_LOOKS)
    shutil.rmtree(path)
