"""Control pictures, each in a file of the name of its picture."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import SupportsIndex

from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.base import BadItem, Picture, Pictures, Words, printable_path, read_file
from pixart_jax.errors import InputError

# Of control files, in the order in which they are looked for.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


class ControlledPictures:
    """The pictures of another source, each with the control picture of its key: `dogs/a.png` for the picture
    `dogs/a.jpg`, or for the key `dogs/a` of a folder or a tar.

    Args:
      pictures: the source.
      folder: of the control pictures.

    Raises:
      InputError: there is no such folder.
    """

    def __init__(self, pictures: Pictures, folder: str | os.PathLike):
        self._pictures, self._folder = pictures, pathlib.Path(folder).absolute()
        if not self._folder.is_dir():
            raise InputError(f"{folder} is no folder; name the one that holds the control pictures")
        self.class_names = pictures.class_names

    @property
    def others(self) -> Mapping[str, int]:
        return self._pictures.others

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        picture = self._pictures[index]
        stem = os.path.splitext(picture.key)[0] if is_image(picture.key) else picture.key
        if os.path.isabs(stem):  # It would lead to the picture itself.
            message = "its path is absolute, and leads to no control picture; write it relative to the list"
            raise BadItem(picture.key, "control-missing", message)
        for extension in EXTENSIONS:
            path = os.path.join(self._folder, f"{stem}{extension}")
            if os.path.lexists(path):
                return dataclasses.replace(picture, control=read_file(path, picture.key))
        message = f"no {printable_path(os.path.join(self._folder, stem))} with {', '.join(EXTENSIONS)} is there"
        raise BadItem(picture.key, "control-missing", message)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`; the control picture is not looked for."""
        return self._pictures.words(index)

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`; not the control picture's."""
        return self._pictures.data(index)

    def file(self, index: SupportsIndex) -> bytes | None:
        """See `Pictures.file`; not the control picture's."""
        return self._pictures.file(index)

    def fingerprint(self) -> str:
        """The source's; and the control pictures' names and sizes."""
        return self._with_folder(self._pictures.fingerprint())

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; whatever has changed in the folder concerns all items."""
        return self._with_folder(self._pictures.digest(items))

    def _with_folder(self, digest: str) -> str:
        return hashlib.sha256(f"{digest} {self._folder_digest}".encode()).hexdigest()

    @functools.cached_property
    def _folder_digest(self) -> str:
        """As the folder is when it is first asked for: it is gone through once."""
        digest = hashlib.sha256()
        for parent, folders, names in os.walk(self._folder):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(parent, name)
                try:
                    size = os.stat(path).st_size
                except OSError:
                    size = -1
                digest.update(f"{os.path.relpath(path, self._folder)}\0{size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"ControlledPictures({self._pictures!r}, {printable_path(self._folder)!r})"
