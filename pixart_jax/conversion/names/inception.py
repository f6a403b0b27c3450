"""PyTorch names of the FID network to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from pixart_jax.conversion.names.rules import COPY, TRANSPOSE, Rule, batch_norm
from pixart_jax.conversion.names.vae import CONV_KERNEL


def _unit_rules(unit: str, target: str) -> list[Rule]:
    return [
        (rf"{unit}\.conv\.weight", f"{target}/conv/kernel", CONV_KERNEL),
        *batch_norm(rf"{unit}\.bn", f"{target}/bn"),
    ]


RULES: list[Rule] = [
    *_unit_rules(r"(Conv2d_\w+)", r"\1"),
    *_unit_rules(r"(Mixed_\w+)\.(branch\w+)", r"\1/\2"),
    (r"fc\.weight", "fc_kernel", TRANSPOSE),
    (r"fc\.bias", "fc_bias", COPY),
]
