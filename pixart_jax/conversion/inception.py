"""The FID network's published file to its parameters."""

from __future__ import annotations

import pathlib
from typing import Any

from pixart_jax.conversion.names.inception import RULES
from pixart_jax.conversion.names.rules import BATCH_COUNTS
from pixart_jax.conversion.picture_networks import load_picture_network
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
    return load_picture_network(path, FidInception(), INPUT_SIZE, RULES, dropped=BATCH_COUNTS)
