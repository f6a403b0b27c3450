"""No NaN and no infinity comes in or goes out with weights: they would make black pictures, or end a training run."""

from __future__ import annotations

import numpy as np

from pixart_jax.errors import InputError

# Numbers that are looked at together, so that what they are found to be takes little memory.
_CHUNK = 1 << 20


def check_finite(array: np.ndarray, name: str) -> None:
    """Raises InputError, which begins with the name, unless all numbers of an array are finite.

    Args:
      array: of any float, as it is kept: what overflows float32 is infinite there.
    """
    rows = np.atleast_1d(array)
    step = max(1, _CHUNK * len(rows) // max(1, rows.size))
    bad = 0
    for begin in range(0, len(rows), step):
        finite = np.isfinite(rows[begin : begin + step])
        bad += 0 if finite.all() else finite.size - int(np.count_nonzero(finite))
    if bad:
        raise InputError(
            f"{name}: {bad:,} of {rows.size:,} numbers are NaN or infinite as {rows.dtype.name}: the weights are "
            "damaged, or their training diverged; download them again, or take an earlier checkpoint"
        )
