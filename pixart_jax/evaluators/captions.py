"""Captions of pictures, and sets of them, which a network looks at as it does at sets of pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from pixart_jax.data.pictures.base import MOST_CAPTION_BYTES, printable
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_bytes, read_fields

# What `generation.picture_lists` leaves beside what it draws.
_LIST = "captions.json"
# How many names a message lists.
_LISTED = 5


def read_captions(root: pathlib.Path, files: Sequence[str], path: pathlib.Path | None) -> list[str]:
    """The caption of each picture of a folder.

    Args:
      root: the folder.
      files: relative paths of its pictures.
      path: a JSON object of the relative path, with or without its ending, to the caption. None for a `captions.json`
        in the folder, which is such an object and lies beside pictures that were drawn; or where there is none, for a
        text file beside each picture, of the same name but for the ending.

    Returns:
      One caption for each file, without the white space around it.

    Raises:
      InputError: a picture has none, or an empty one; names the first few. Or a file of captions cannot be read.
    """
    if path is None and (root / _LIST).is_file():
        path = root / _LIST
    found = [_beside(root / name) for name in files] if path is None else _listed(path, files)
    if missing := [printable(name) for name, caption in zip(files, found, strict=True) if not caption]:
        names = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        where = "a .txt of its name should lie beside it, or --captions name it"
        if path:
            where = f"{path} should name it, with a caption that is more than white space"
        raise InputError(f"{root}: {len(missing)} of {len(files)} pictures have no caption: {names}; {where}")
    return [caption or "" for caption in found]


def _beside(picture: pathlib.Path) -> str | None:
    path = picture.with_suffix(".txt")
    if not os.path.lexists(path):
        return None
    data = read_bytes(path, "make it a text file with the picture's caption", MOST_CAPTION_BYTES)
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as that") from error


def _listed(path: pathlib.Path, files: Sequence[str]) -> list[str | None]:
    fields = read_fields(path, "it should be a JSON object of each picture's name to its caption")
    captions = {name: fields.text(name).strip() for name in fields}
    names = [pathlib.PurePath(name) for name in files]
    return [captions.get(name.as_posix(), captions.get(name.with_suffix("").as_posix())) for name in names]


@dataclasses.dataclass(frozen=True)
class CaptionSet:
    """Captions, each once, that `picture_sets.extract` hands to a network as it does pictures.

    Attributes:
      captions: they.
      per_unit: how many are looked at between two savings.
      which: of each of the captions that the set was made of, its place among them.
    """

    captions: tuple[str, ...]
    per_unit: int
    which: tuple[int, ...]

    @classmethod
    def of(cls, captions: Sequence[str], per_unit: int) -> CaptionSet:
        places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        return cls(tuple(places), per_unit, tuple(places[caption] for caption in captions))

    @property
    def path(self) -> str:
        return "captions"

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of them, in their order."""
        return hashlib.sha256(json.dumps(self.captions).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, place: int) -> str:
        return f"the caption {self.captions[place][:80]!r}"

    def read(self, place: int) -> str:
        return self.captions[place]

    def ready(self, number: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
