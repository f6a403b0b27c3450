"""Folders and tars to read pictures from, and what reading all of a source gives."""

import io
import os
import pathlib
import pickle
import tarfile

from pixart_jax.data.pictures import BadItem


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def outcomes(source):
    """Of every item its captions, or its label when it has one, or the reason why it is bad; by key."""
    found = {}
    for index in range(len(source)):
        try:
            item = source[index]
            found[item.key] = item.captions if item.label is None else item.label
            # The same in parts, and where the picture lies.
            assert source.words(index) == (item.key, item.captions, item.label)
            assert source.data(index) == item.data
            assert (path := source.file(index)) is None or pathlib.Path(os.fsdecode(path)).read_bytes() == item.data
        except BadItem as raised:
            error = pickle.loads(pickle.dumps(raised))  # as out of a worker process
            assert str(error).startswith(f"{error.key}: {error.reason}: ")
            found[error.key] = error.reason
    assert len(found) == len(source), "keys repeat"
    assert all(key.encode() for key in found)
    return found


def one(text):
    return ((text, 1.0),)


def tar(files, format=tarfile.GNU_FORMAT):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()
