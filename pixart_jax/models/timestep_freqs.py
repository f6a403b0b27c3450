"""The sinusoid frequencies of the timestep embedder, numpy only, so that conversion can share them with the model."""

from __future__ import annotations

from importlib import resources

import numpy as np

# The reference's 128 sinusoid frequencies are a float32 `exp` that no other library reproduces to the last bit, and
# one ulp moves cos/sin by 6e-5 at t = 999. So the table is data, not a formula.
with resources.files(__package__).joinpath("timestep_freqs.npy").open("rb") as _file:
    TIMESTEP_FREQS: np.ndarray = np.load(_file)
