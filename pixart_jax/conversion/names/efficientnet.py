"""PyTorch names of EfficientNet-lite to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from pixart_jax.conversion.names.rules import Rule, batch_norm, linear
from pixart_jax.conversion.names.vae import CONV_KERNEL, DENSE_KERNEL

RULES: list[Rule] = [
    (r"_conv_stem\.weight", "conv_stem/kernel", CONV_KERNEL),
    (r"_conv_head\.weight", "conv_head/kernel", DENSE_KERNEL),
    *batch_norm(r"_(bn\d)", r"\1"),
    (r"_blocks\.(\d+)\._depthwise_conv\.weight", r"blocks_\1/depthwise_conv/kernel", CONV_KERNEL),
    (r"_blocks\.(\d+)\._(expand_conv|project_conv)\.weight", r"blocks_\1/\2/kernel", DENSE_KERNEL),
    *batch_norm(r"_blocks\.(\d+)\._(bn\d)", r"blocks_\1/\2"),
    *linear("_fc", "fc"),
]
