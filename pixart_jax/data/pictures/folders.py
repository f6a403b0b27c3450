"""Pictures as files in folders, a caption beside each or a folder per class."""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import SupportsIndex

from pixart_jax.data.picture_formats import HEAD, NO_PICTURES, begins_like_a_picture, extension, is_image, why_not_read
from pixart_jax.data.pictures.base import (
    MOST_CAPTION_BYTES,
    BadItem,
    Picture,
    Words,
    caption_text,
    checked_index,
    clashing,
    path_bytes,
    path_text,
    printable,
    printable_path,
    read_file,
    weighed,
)
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular


class FolderPictures:
    """The pictures in a folder and those below it, in the order of their relative paths.

    Found by extension, in upper or lower case, and where a name has none, or one that is nobody's, by their first
    bytes. Names that begin with a dot are left out, symbolic links are followed. The key is the relative path without
    its extension, or with it where two would be equal (a.jpg beside a.png). The caption is the UTF-8 text file of the
    same name: a.txt, a.caption, a.jpg.txt or a.jpg.caption, the first that holds one. With classes, each folder
    directly below `root` is a class, its label the place of its name among the sorted names; a caption may be there or
    not.

    Opening lists the folders and reads and stats no file but those of unknown extensions: ten seconds for a million
    pictures on a local disk.

    Args:
      root: the folder.
      with_classes: see above.
      caption: of pictures that have no text file beside them; "" takes such pictures for faulty.

    Raises:
      InputError: no such folder, or one that cannot be listed; no pictures in it; no class folders.
    """

    def __init__(self, root: str | os.PathLike, *, with_classes: bool = False, caption: str = ""):
        root = pathlib.Path(root)
        if not root.is_dir():
            raise InputError(f"{root} is no folder; name one that holds pictures")
        self._root = os.fsencode(root.absolute())
        self.others: collections.Counter[str] = collections.Counter()
        self._paths = sorted(pictures_below(self._root, self.others))
        if not self._paths:
            raise InputError(f"{root}: no pictures in it or below; {_other_forms(root)}")
        self._keys_with_extension = clashing([_stem(path) for path in self._paths], self._paths)
        self.class_names: tuple[str, ...] = ()
        self._caption = caption
        self._labels: dict[str, int] = {}
        if with_classes:
            folders = sorted(name for name, is_folder in _entries(self._root) if is_folder and not _is_hidden(name))
            if not folders:
                raise InputError(f"classes:{root}: no folders in it; put each class into its own")
            self._labels = {name: label for label, name in enumerate(folders)}
            self.class_names = tuple(map(printable, folders))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        key, captions, label = self.words(index)
        if not captions and label is None:
            path = self._on_disk(f"{_stem(self._path(index)[0])}.txt")
            message = f"{printable_path(path)} is not there; write the caption into it"
            raise BadItem(key, "caption-missing", message)
        return Picture(key=key, data=self.data(index), captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`."""
        path, key = self._path(index)
        label = None
        if self._labels:
            folder, slash, _ = path.partition("/")
            if not slash:
                raise BadItem(key, "class-missing", f"{printable(path)} is in no class folder; move it into one")
            label = self._labels[folder]
        captions = self._beside(path, key)
        if not captions and self._caption:
            captions = weighed([(self._caption, 1.0)], key)
        return Words(key, captions, label)

    def _beside(self, path: str, key: str) -> tuple[tuple[str, float], ...]:
        """The caption in the first of the files beside a picture that holds one; () where there is none of them."""
        first: BadItem | None = None
        for name in _caption_files(path):
            try:
                text = caption_text(read_file(self._on_disk(name), key, MOST_CAPTION_BYTES), key)
                return weighed([(text, 1.0)], key)
            except BadItem as error:
                if error.reason != "missing-file":
                    first = first or error
        if first is not None:
            raise first
        return ()

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`."""
        path, key = self._path(index)
        return read_file(self._on_disk(path), key)

    def file(self, index: SupportsIndex) -> bytes:
        """See `Pictures.file`."""
        return self._on_disk(self._path(index)[0])

    def fingerprint(self) -> str:
        """Of the pictures' relative paths and sizes, and the class names. Asks the file system for every picture's
        size: seconds for a million on a local disk, some minutes over a network."""
        return self.digest(range(len(self)))

    def digest(self, items: range) -> str:
        """See `Pictures.digest`."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for path in self._paths[items.start : items.stop]:
            try:
                size = os.stat(self._on_disk(path)).st_size
            except OSError:
                size = -1
            digest.update(path_bytes(f"{path}\0{size}\0"))
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"FolderPictures({printable_path(self._root)!r}, with_classes={bool(self.class_names)})"

    def _path(self, index: SupportsIndex) -> tuple[str, str]:
        """(relative path, key) of an item; raises BadItem "unsupported"."""
        index = checked_index(index, len(self))
        path = self._paths[index]
        key = printable(path if index in self._keys_with_extension else _stem(path))
        if problem := why_not_read(path):
            raise BadItem(key, "unsupported", f"{printable(path)} is {problem}")
        return path, key

    def _on_disk(self, path: str) -> bytes:
        return os.path.join(self._root, path_bytes(path))


def _stem(path: str) -> str:
    """Without the extension, if it is one of a picture's: IMG.0001 is a whole name."""
    return os.path.splitext(path)[0] if is_image(path) else path


def _caption_files(path: str) -> tuple[str, ...]:
    """Where a picture's caption may be, as the trainers of the wild write it; the first that holds one counts."""
    stem = _stem(path)
    names = (
        f"{stem}.txt",
        f"{stem}.caption",
        f"{path}.txt",
        f"{path}.caption",
        *(f"{of}.{ending}" for of in (stem, path) for ending in ("TXT", "CAPTION")),
    )
    return tuple(dict.fromkeys(names))


def pictures_below(root: bytes, others: collections.Counter[str]) -> Iterator[str]:
    """Paths relative to `root`, in no particular order; counts what is no picture in `others`."""
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # each with the (device, inode) of those above
    while folders:
        folder, ancestors = folders.pop()
        on_disk = os.path.join(root, path_bytes(folder))
        entries = list(_entries(on_disk))
        # A link to a folder that it lies in would be followed for ever. One stat per folder, none per file.
        status = os.stat(on_disk)
        here = (status.st_dev, status.st_ino)
        if here in ancestors:
            continue
        for name, is_folder in entries:
            if _is_hidden(name):
                others["hidden"] += 1
            elif is_folder:
                folders.append((f"{folder}{name}/", (*ancestors, here)))
            elif is_image(name) or _looks_like_one(os.path.join(on_disk, path_bytes(name)), name):
                yield f"{folder}{name}"
            else:
                others[f".{printable(extension(name))}" if extension(name) else "without extension"] += 1


def _looks_like_one(path: bytes, name: str) -> bool:
    """Whether a file that no extension calls a picture is one. Who cannot look at it may not leave it out either."""
    if extension(name) in NO_PICTURES:
        return False
    try:
        with open_regular(path) as file:
            return begins_like_a_picture(file.read(HEAD))
    except OSError:
        return _is_regular(path)


def _is_regular(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # a link to nothing
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _entries(folder: bytes) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of what a folder holds."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield path_text(entry.name), _is_folder(entry)
    except OSError as error:
        raise InputError(
            f"{printable_path(folder)}: cannot list this folder: {error.strerror}; allow it, or move it elsewhere"
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: not to be listed, and reading it will say so
        return False


def _other_forms(root: pathlib.Path) -> str:
    """What to name instead of a folder that holds no pictures."""
    names = [name for name, is_folder in _entries(os.fsencode(root)) if not (is_folder or _is_hidden(name))]
    if any(name.endswith(".tar") for name in names):
        return f"it holds tars: name them, as in {root}/*.tar"
    lists = [name for name in names if name.lower().endswith((".json", ".jsonl", ".csv", ".tsv"))]
    return f"name the list in it, {root}/{printable(sorted(lists)[0])}" if lists else "name another folder"
