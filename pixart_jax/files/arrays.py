"""numpy's files from outside: what their headers say is compared with their bytes before any memory is taken."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Collection

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_bytes

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What a header is at most.
_HEADER_BYTES = 1 << 16


def read_npy(path: str | os.PathLike, what: str, cure: str, max_bytes: int) -> np.ndarray:
    """The array of numbers in a `.npy`.

    Args:
      what: it should hold, as in "word embeddings".
      cure: what to do about a damaged file, as in "copy it again".

    Raises:
      InputError: it is no regular file, no `.npy` of at most so many bytes, of no numbers, or cut.
    """
    data = read_bytes(path, cure, max_bytes)
    try:
        return _parse(data)
    except ValueError as error:
        raise InputError(f"{path}: not {what}, or damaged: {error}; {cure}") from error


def read_npz(
    path: str | os.PathLike, names: Collection[str], what: str, cure: str, max_bytes: int
) -> dict[str, np.ndarray]:
    """Arrays of numbers by name from a `.npz`, compressed or not.

    Args:
      names: those to read, all of which must be there.
      what, cure: as of `read_npy`.
      max_bytes: of the file, and of the arrays together.

    Raises:
      InputError: as `read_npy`.
    """
    data = read_bytes(path, cure, max_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.getinfo(f"{name}.npy") for name in names}
            if (total := sum(info.file_size for info in members.values())) > max_bytes:
                raise ValueError(f"its arrays unfold to {total:,} bytes, where at most {max_bytes:,} belong")
            return {name: _parse(archive.read(info)) for name, info in members.items()}
    # Damage makes the library raise almost anything.
    except Exception as error:
        raise InputError(f"{path}: not {what}, or damaged: {error}; {cure}") from error


def _parse(data: bytes) -> np.ndarray:
    """The array of a `.npy`'s bytes; raises ValueError if they are none."""
    file = io.BytesIO(data)
    try:
        read_header = _HEADERS.get(np.lib.format.read_magic(file))
        if read_header is None:
            raise ValueError("of an unknown version")
        with warnings.catch_warnings(action="ignore"):  # numpy parses headers of Python 2, and says so.
            shape, fortran, dtype = read_header(file, max_header_size=_HEADER_BYTES)
    except MemoryError:
        raise
    # Headers are Python's text, whose parser raises errors of its own.
    except Exception as error:
        raise ValueError(f"its header cannot be read: {next(iter(str(error).splitlines()), '')}") from error
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}, not numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{len(data) - file.tell():,} bytes are no array of {dtype} of shape {shape}")
    array = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))
