"""PyTorch names of HED's network to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, Layout, Rule, convert
from pixart_jax.conversion.names.vae import CONV_KERNEL

# [1, 3, 1, 1] of the file.
_NORM = Layout(lambda norm: norm.reshape(-1), lambda norm, _: norm.reshape(1, -1, 1, 1))
_RULES: list[Rule] = [
    ("norm", "norm", _NORM),
    (r"(block[1-5])\.convs\.([0-2])\.weight", r"\1/convs_\2/kernel", CONV_KERNEL),
    (r"(block[1-5])\.convs\.([0-2])\.bias", r"\1/convs_\2/bias", COPY),
    (r"(block[1-5])\.projection\.weight", r"\1/projection/kernel", CONV_KERNEL),
    (r"(block[1-5])\.projection\.bias", r"\1/projection/bias", COPY),
]


def convert_hed(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Parameters of a `Hed` from the state dict of `ControlNetHED.pth`.

    Args, returns and errors as `names.inception.convert_inception`.
    """
    return convert(state_dict, _RULES, "(?!)", [], {}, expected)
