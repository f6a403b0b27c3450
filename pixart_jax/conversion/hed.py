"""HED's published file, `ControlNetHED.pth`, to its network's parameters."""

from __future__ import annotations

import pathlib
from typing import Any

from pixart_jax.conversion.names.hed import RULES
from pixart_jax.conversion.picture_networks import load_picture_network
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
    return load_picture_network(path, Hed(), UNIT, RULES, misfit=" is not HED's network (ControlNetHED.pth)")
