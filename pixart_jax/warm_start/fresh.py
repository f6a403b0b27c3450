"""Some of a model's parameters as training initialises them."""

from __future__ import annotations

from collections.abc import Callable

import flax
import jax
import numpy as np

from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key


def fresh_params(model: PixArt, seed: int, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """'/'-joined path to f32 array of the parameters whose paths are wanted, equal to those of a run with this seed."""

    @jax.jit  # Compiled, what is not returned is not computed.
    def fresh(key):
        params = flax.traverse_util.flatten_dict(init_params(model, key), sep="/")
        return {path: leaf for path, leaf in params.items() if wanted(path)}

    # Copies: what jax gives cannot be written to.
    return {path: np.array(leaf) for path, leaf in fresh(stream_key(seed, "init")).items()}
