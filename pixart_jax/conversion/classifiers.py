"""Classifiers of pictures, whose features are measured: PyTorch's files to parameters, strict on both sides."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import flax
import flax.linen as nn
import jax
import numpy as np

from pixart_jax.conversion.arrays import open_checkpoint
from pixart_jax.errors import InputError


class Convert(Protocol):
    """The rules of a network, see conversion/names."""

    def __call__(
        self,
        state_dict: Mapping[str, np.ndarray],
        expected: Mapping[str, tuple[int, ...]],
        dropped: Collection[str] = (),
    ) -> dict[str, np.ndarray]: ...


def load_classifier(path: pathlib.Path, network: nn.Module, input_size: int, convert: Convert) -> Any:
    """Parameters of a network of convolutions with batch normalisation.

    Args:
      path: a state dict, as PyTorch's file or safetensors.
      network: takes f32[B, S, S, 3], S `input_size`.
      convert: the state dict's names to the network's.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: the file is damaged, or another network's.
    """
    picture = np.zeros((1, input_size, input_size, 3), np.float32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), picture))["params"]
    expected = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    arrays, _ = open_checkpoint(path, None)
    # How many batches there were in training is an integer that nothing at inference asks for.
    counts = {name for name in arrays if name.endswith(".num_batches_tracked")}
    arrays.check_kinds(beside=counts)
    try:
        flat = convert(arrays, expected, counts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
