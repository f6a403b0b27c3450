"""Control pictures: each in a file of the name of its picture, or where its source says."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol, SupportsIndex, runtime_checkable

from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.base import BadItem, Picture, Pictures, Words, printable_path, read_file
from pixart_jax.errors import InputError

# Of control files, in the order in which they are looked for.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


# Between the key of a tar's picture and the extension, in the name of its control picture.
MARK = "control"


@runtime_checkable
class NamesControls(Protocol):
    """Pictures whose source can say itself where the control picture of each is."""

    @property
    def num_controls(self) -> int:
        """How many items it names one of; where it is 0, there is no use in asking."""

    def control(self, index: SupportsIndex) -> bytes | None:
        """The encoded control picture of item 0 <= index < len; None where none is named.

        Raises:
          BadItem, IndexError: as of the item itself; "control-missing" where it is not there.
        """

    def control_file(self, index: SupportsIndex) -> bytes | None:
        """Its absolute path; None where it has no file of its own, or none is named."""

    def controls_digest(self, items: range) -> str:
        """What `digest` does not know of the control pictures of some items."""


class ControlledPictures:
    """The pictures of another source, each with its control picture.

    Args:
      pictures: the source.
      folder: of the control pictures, by the keys of the pictures: `dogs/a.png` for the picture `dogs/a.jpg`, or for
        the key `dogs/a` of a folder or a tar. None where the source names them itself.

    Raises:
      InputError: there is no such folder; or the source names no control picture.
    """

    def __init__(self, pictures: Pictures, folder: str | os.PathLike | None):
        self._controls = _InFolder(folder) if folder is not None else _Named(pictures)
        self._pictures = pictures
        self.class_names = pictures.class_names

    @property
    def others(self) -> Mapping[str, int]:
        return self._pictures.others

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        picture = self._pictures[index]
        return dataclasses.replace(picture, control=self._controls.read(index, picture.key))

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
        """The source's; and of the control pictures names and sizes, or of those that it names what `NamesControls`
        says."""
        return self._with_controls(self._pictures.fingerprint(), range(len(self)))

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; whatever has changed in a folder of control pictures concerns all items."""
        return self._with_controls(self._pictures.digest(items), items)

    def _with_controls(self, digest: str, items: range) -> str:
        return hashlib.sha256(f"{digest} {self._controls.digest(items)}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"ControlledPictures({self._pictures!r}, {self._controls!r})"


class _InFolder:
    """Control pictures by the keys of the pictures."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = pathlib.Path(folder).absolute()
        if not self._folder.is_dir():
            raise InputError(f"{folder} is no folder; name the one that holds the control pictures")

    def read(self, index: SupportsIndex, key: str) -> bytes:
        stem = os.path.splitext(key)[0] if is_image(key) else key
        if os.path.isabs(stem):  # It would lead to the picture itself.
            message = "its path is absolute, and leads to no control picture; write it relative to the list"
            raise BadItem(key, "control-missing", message)
        for extension in EXTENSIONS:
            path = os.path.join(self._folder, f"{stem}{extension}")
            if os.path.lexists(path):
                return read_file(path, key)
        message = f"no {printable_path(os.path.join(self._folder, stem))} with {', '.join(EXTENSIONS)} is there"
        raise BadItem(key, "control-missing", message)

    def digest(self, items: range) -> str:
        return self._whole

    @functools.cached_property
    def _whole(self) -> str:
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
        return repr(printable_path(self._folder))


class _Named:
    """Control pictures that a source names itself."""

    def __init__(self, pictures: Pictures):
        if not isinstance(pictures, NamesControls) or not pictures.num_controls:
            raise InputError(
                f"{pictures!r} names no control pictures: a list does it in its records ({MARK!r}), a tar by names "
                f"such as 0.{MARK}.png beside 0.jpg; or name the folder that holds them"
            )
        self._pictures = pictures

    def read(self, index: SupportsIndex, key: str) -> bytes:
        if (data := self._pictures.control(index)) is None:
            raise BadItem(key, "control-missing", "its source names no control picture of it")
        return data

    def digest(self, items: range) -> str:
        return self._pictures.controls_digest(items)

    def __repr__(self) -> str:
        return "the source's own"
