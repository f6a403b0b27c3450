"""PyTorch names of HED's network to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from pixart_jax.conversion.names.rules import COPY, Layout, Rule
from pixart_jax.conversion.names.vae import CONV_KERNEL

# [1, 3, 1, 1] of the file.
_NORM = Layout(lambda norm: norm.reshape(-1), lambda norm, _: norm.reshape(1, -1, 1, 1))
RULES: list[Rule] = [
    ("norm", "norm", _NORM),
    (r"(block[1-5])\.convs\.([0-2])\.weight", r"\1/convs_\2/kernel", CONV_KERNEL),
    (r"(block[1-5])\.convs\.([0-2])\.bias", r"\1/convs_\2/bias", COPY),
    (r"(block[1-5])\.projection\.weight", r"\1/projection/kernel", CONV_KERNEL),
    (r"(block[1-5])\.projection\.bias", r"\1/projection/bias", COPY),
]
