"""numpy's files, read within bounds: a header is believed as far as there are bytes."""

from __future__ import annotations

import math
from typing import IO

import numpy as np


def load_array(file: IO[bytes], num_bytes: int) -> np.ndarray:
    """The array of an .npy file, without pickled objects.

    Args:
      file: at its beginning.
      num_bytes: that it holds.

    Raises:
      ValueError: it is no .npy file, a damaged one, or not as long as its header says; without any of its bytes.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read(file)
    except Exception:  # of numpy, struct, tokenize or ast, by where the damage is
        raise ValueError("the header is not that of an .npy file") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not opened")
    size = math.prod(shape) * dtype.itemsize
    if any(extent < 0 for extent in shape) or size > num_bytes:
        raise ValueError(f"the header tells of {size:,} bytes, and the file holds {num_bytes:,}")
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{size:,} bytes wanted, {len(data):,} there")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if in_columns else "C")
