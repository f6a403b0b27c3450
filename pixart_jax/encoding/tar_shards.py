"""WebDataset tars of pictures and records; the same bytes for the same content."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Mapping

from pixart_jax.data.picture_formats import extension_of
from pixart_jax.files import write_atomically


def write_tar(path: pathlib.Path, items: Iterable[tuple[str, bytes, Mapping]]) -> None:
    """Writes, atomically, NAME.EXTENSION and NAME.json of each item; its folder is made.

    Args:
      items: names without dots, encoded pictures, and records, JSON-able.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, picture, record in items:
                _add(tar, f"{name}.{extension_of(picture)}", picture)
                _add(tar, f"{name}.json", json.dumps(record, ensure_ascii=False).encode())

    write_atomically(path, write)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
