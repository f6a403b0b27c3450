"""PyTorch names of EfficientNet-lite to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, TRANSPOSE, Rule, convert
from pixart_jax.conversion.names.vae import CONV_KERNEL


def _rules(module: str, target: str) -> list[Rule]:
    names = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))
    norm, conv = r"_(bn\d)\.", r"_(\w*conv\w*)\.weight"
    last = module.count("(") + 1
    norms: list[Rule] = [(rf"{module}{norm}{theirs}", rf"{target}\{last}/{ours}", COPY) for theirs, ours in names]
    return [(rf"{module}{conv}", rf"{target}\{last}/kernel", CONV_KERNEL), *norms]


_RULES: list[Rule] = [
    *_rules("", ""),
    *_rules(r"_blocks\.(\d+)\.", r"blocks_\1/"),
    (r"_fc\.weight", "fc/kernel", TRANSPOSE),
    (r"_fc\.bias", "fc/bias", COPY),
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
