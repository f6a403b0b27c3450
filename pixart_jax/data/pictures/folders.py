"""Pictures as files in folders, a caption beside each or a folder per class."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import SupportsIndex

from pixart_jax.data.pictures.base import (
    BadItem,
    Picture,
    caption_text,
    checked_index,
    clashing,
    is_image,
    printable,
    read_file,
    weighed,
)
from pixart_jax.errors import InputError


class FolderPictures:
    """The pictures in a folder and those below it, in the order of their relative paths.

    Found by extension, in upper or lower case; names that begin with a dot are left out, symbolic links are followed.
    The key is the relative path without its extension, or with it where two would be equal (a.jpg beside a.png).
    The caption is the UTF-8 text file of the same name (a.txt). With classes, each folder directly below `root` is
    a class, its label the place of its name among the sorted names; a caption may be there or not.

    Opening lists the folders and reads and stats no file: ten seconds for a million on a local disk.

    Args:
      root: the folder.
      with_classes: see above.

    Raises:
      InputError: no such folder, or one that cannot be listed; no pictures in it; no class folders.
    """

    def __init__(self, root: str | os.PathLike, *, with_classes: bool = False):
        self._root = pathlib.Path(root).absolute()
        if not self._root.is_dir():
            raise InputError(f"{root} is no folder; name one that holds pictures")
        self._paths = sorted(_images_below(self._root))
        if not self._paths:
            raise InputError(f"{root}: no pictures in it or below; {_other_forms(pathlib.Path(root))}")
        self._keys_with_extension = clashing([_stem(path) for path in self._paths], self._paths)
        self.class_names: tuple[str, ...] = ()
        self._labels: dict[str, int] = {}
        if with_classes:
            folders = sorted(name for name, is_folder in _entries(self._root) if is_folder)
            if not folders:
                raise InputError(f"classes:{root}: no folders in it; put each class into its own")
            self._labels = {name: label for label, name in enumerate(folders)}
            self.class_names = tuple(map(printable, folders))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        index = checked_index(index, len(self))
        path = self._paths[index]
        key = printable(path if index in self._keys_with_extension else _stem(path))
        label = None
        if self._labels:
            folder, slash, _ = path.partition("/")
            if not slash:
                raise BadItem(key, "class-missing", f"{printable(path)} is in no class folder; move it into one")
            label = self._labels[folder]
        captions: tuple[tuple[str, float], ...] = ()
        try:
            captions = weighed([(caption_text(read_file(self._root / f"{_stem(path)}.txt", key), key), 1.0)], key)
        except BadItem as error:
            if error.reason != "missing-file":
                raise
            if label is None:
                raise BadItem(key, "caption-missing", f"{error.message}; write the caption into it") from None
        return Picture(key=key, data=read_file(self._root / path, key), captions=captions, label=label)

    def fingerprint(self) -> str:
        """Of the pictures' relative paths and sizes, and the class names. Asks the file system for every picture's
        size: seconds for a million on a local disk, some minutes over a network."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for path in self._paths:
            try:
                size = os.stat(self._root / path).st_size
            except OSError:
                size = -1
            digest.update(os.fsencode(f"{path}\0{size}\0"))
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"FolderPictures({str(self._root)!r}, with_classes={bool(self.class_names)})"


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _images_below(root: pathlib.Path) -> Iterator[str]:
    """Paths relative to `root`, in no particular order."""
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # each with the (device, inode) of those above
    while folders:
        folder, ancestors = folders.pop()
        entries = list(_entries(root / folder))
        # A link to a folder that it lies in would be followed for ever. One stat per folder, none per file.
        status = os.stat(root / folder)
        here = (status.st_dev, status.st_ino)
        if here in ancestors:
            continue
        for name, is_folder in entries:
            if is_folder:
                folders.append((f"{folder}{name}/", (*ancestors, here)))
            elif is_image(name):
                yield f"{folder}{name}"


def _entries(folder: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of what a folder holds."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, _is_folder(entry)
    except OSError as error:
        raise InputError(
            f"{printable(folder)}: cannot list this folder: {error}; allow it, or move it elsewhere"
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: not to be listed, and reading it will say so
        return False


def _other_forms(root: pathlib.Path) -> str:
    """What to name instead of a folder that holds no pictures."""
    names = [name for name, is_folder in _entries(root) if not is_folder]
    if any(name.endswith(".tar") for name in names):
        return f"it holds tars: name them, as in {root}/*.tar"
    lists = [name for name in names if name.endswith((".json", ".jsonl"))]
    return f"name the list in it, {root}/{sorted(lists)[0]}" if lists else "name another folder"
