"""Networks that look at pictures and are not trained here: PyTorch's files to parameters, strict on both sides."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from pixart_jax.conversion.arrays import open_checkpoint
from pixart_jax.conversion.names.rules import Rule, convert_flat
from pixart_jax.errors import InputError


def load_picture_network(
    path: pathlib.Path,
    network: nn.Module,
    input_size: int,
    rules: Sequence[Rule],
    *,
    dropped: str = "(?!)",
    misfit: str = "",
) -> Any:
    """Parameters of a network.

    Args:
      path: a state dict, as PyTorch's file or safetensors.
      network: takes f32[B, S, S, 3], S `input_size`.
      rules: the state dict's names to the network's, see conversion/names.
      dropped: a regular expression of names that are left out on purpose.
      misfit: what the error of another network's file says after its path.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: the file is damaged, or another network's.
    """
    picture = np.zeros((1, input_size, input_size, 3), np.float32)
    return load_network(path, network, picture, rules, dropped=dropped, misfit=misfit)


def load_network(
    path: pathlib.Path,
    network: nn.Module,
    inputs: Any,
    rules: Sequence[Rule],
    *,
    dropped: str = "(?!)",
    misfit: str = "",
) -> Any:
    """As `load_picture_network`, of a network that takes something else.

    Args:
      inputs: what it takes: arrays, or their shapes.
    """
    shapes = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), inputs)["params"]
    expected = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    arrays, _ = open_checkpoint(path, None)
    left_out = {name for name in arrays if re.fullmatch(dropped, name)}
    arrays.check_kinds(beside=left_out)
    try:
        flat = convert_flat(arrays, rules, expected, left_out)
    except InputError as error:
        raise InputError(f"{path}{misfit}: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
