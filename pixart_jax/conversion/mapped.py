"""Stored parameters as they lie on disk: mapped into memory, and neither read nor copied before they are used.

What `stored.write_params` writes is zarr, uncompressed, an array in a file: its bytes are the array's. A CPU computes
with the mapped pages themselves, and an accelerator is sent them. Reading the same through TensorStore copies them
several times.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

_DTYPES = {"<f4": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def mapped_arrays(params: pathlib.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the arrays of a `params/` that lie there as they are in memory, by '/'-joined path; read-only.

    The others (of another layout, empty, incomplete) are left to Orbax, which reads them or says what is wrong.
    """
    found = {name: _mapped(params / name.replace("/", ".")) for name in names}
    return {name: array for name, array in found.items() if array is not None}


def _mapped(folder: pathlib.Path) -> np.ndarray | None:
    try:
        said = json.loads((folder / ".zarray").read_bytes())
        shape, dtype = tuple(said["shape"]), _DTYPES[said["dtype"]]
        plain = {"compressor": None, "filters": None, "order": "C", "zarr_format": 2, "chunks": list(shape)}
        if not shape or any(said[name] != value for name, value in plain.items()):
            return None
        path = folder / said.get("dimension_separator", ".").join("0" * len(shape))
        if path.stat().st_size != math.prod(shape) * dtype.itemsize:
            return None
        return np.memmap(path, dtype=dtype, mode="r", shape=shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
