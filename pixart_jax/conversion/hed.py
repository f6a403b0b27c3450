"""HED's published file, `ControlNetHED.pth`, to its network's parameters."""

from __future__ import annotations

import pathlib
from typing import Any

import flax
import jax
import numpy as np

from pixart_jax.conversion.arrays import open_checkpoint
from pixart_jax.conversion.names.hed import convert_hed
from pixart_jax.errors import InputError
from pixart_jax.models.hed import UNIT, Hed


def load_hed(path: pathlib.Path) -> Any:
    """Parameters of a `Hed`.

    Args:
      path: the state dict, as PyTorch's file or safetensors.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: there is no such file, it is damaged, or another network's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; name HED's weights, ControlNetHED.pth")
    picture = np.zeros((1, UNIT, UNIT, 3), np.float32)
    shapes = jax.eval_shape(lambda: Hed().init(jax.random.key(0), picture))["params"]
    expected = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    arrays, _ = open_checkpoint(path, None)
    arrays.check_kinds()
    try:
        flat = convert_hed(arrays, expected)
    except InputError as error:
        raise InputError(f"{path} is not HED's network (ControlNetHED.pth): {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
