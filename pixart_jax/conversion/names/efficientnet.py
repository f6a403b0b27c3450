"""PyTorch names of EfficientNet-lite to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import Rule, batch_norm, convert, linear
from pixart_jax.conversion.names.vae import CONV_KERNEL, DENSE_KERNEL

_RULES: list[Rule] = [
    (r"_conv_stem\.weight", "conv_stem/kernel", CONV_KERNEL),
    (r"_conv_head\.weight", "conv_head/kernel", DENSE_KERNEL),
    *batch_norm(r"_(bn\d)", r"\1"),
    (r"_blocks\.(\d+)\._depthwise_conv\.weight", r"blocks_\1/depthwise_conv/kernel", CONV_KERNEL),
    (r"_blocks\.(\d+)\._(expand_conv|project_conv)\.weight", r"blocks_\1/\2/kernel", DENSE_KERNEL),
    *batch_norm(r"_blocks\.(\d+)\._(bn\d)", r"blocks_\1/\2"),
    *linear("_fc", "fc"),
]


def convert_efficientnet(
    state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], dropped: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Parameters of an `EfficientNetLite` from the state dict of the package `efficientnet_lite_pytorch`.

    Args:
      state_dict: PyTorch names to arrays.
      expected: '/'-joined path to shape of each parameter of the model.
      dropped: PyTorch names that are left out on purpose.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: as `rules.convert`.
    """
    return convert(state_dict, _RULES, "(?!)", [], {}, expected, dropped=dropped)
