"""The FID network's published file to its parameters."""

from __future__ import annotations

import pathlib
from typing import Any

import flax
import jax
import numpy as np

from pixart_jax.conversion.arrays import open_checkpoint
from pixart_jax.conversion.names.inception import convert_inception
from pixart_jax.errors import InputError
from pixart_jax.models.inception import INPUT_SIZE, FidInception


def load_inception(path: pathlib.Path) -> Any:
    """Parameters of a `FidInception`.

    Args:
      path: the state dict that pytorch-fid and torch-fidelity load, as PyTorch's file or safetensors.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: the file is damaged, or another network's.
    """
    picture = np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.float32)
    shapes = jax.eval_shape(lambda: FidInception().init(jax.random.key(0), picture))["params"]
    expected = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    arrays, _ = open_checkpoint(path, None)
    # How many batches there were in training is an integer that nothing at inference asks for.
    counts = {name for name in arrays if name.endswith(".bn.num_batches_tracked")}
    arrays.check_kinds(beside=counts)
    try:
        flat = convert_inception(arrays, expected, counts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
