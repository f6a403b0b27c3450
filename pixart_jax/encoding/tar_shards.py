"""WebDataset tars of pictures and records; the same bytes for the same content."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pixart_jax.data.picture_formats import extension_of
from pixart_jax.data.pictures.controls import MARK
from pixart_jax.files import write_atomically


class TarItem(NamedTuple):
    """What a tar has of one name, which has no dots: an encoded picture, a JSON-able record, and an encoded control
    picture or None."""

    name: str
    picture: bytes
    record: Mapping
    control: bytes | None = None


def write_tar(path: pathlib.Path, items: Iterable[TarItem]) -> None:
    """Writes, atomically, NAME.EXTENSION and NAME.json of each item, and NAME.control.EXTENSION; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, picture, record, control in items:
                _add(tar, f"{name}.{extension_of(picture)}", picture)
                _add(tar, f"{name}.json", json.dumps(record, ensure_ascii=False).encode())
                if control is not None:
                    _add(tar, f"{name}.{MARK}.{extension_of(control)}", control)

    write_atomically(path, write)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
