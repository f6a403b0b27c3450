"""PyTorch names of the FID network to ours: rules, strict on both sides. numpy only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, TRANSPOSE, Rule, batch_norm, convert
from pixart_jax.conversion.names.vae import CONV_KERNEL


def _unit_rules(unit: str, target: str) -> list[Rule]:
    return [
        (rf"{unit}\.conv\.weight", f"{target}/conv/kernel", CONV_KERNEL),
        *batch_norm(rf"{unit}\.bn", f"{target}/bn"),
    ]


_RULES: list[Rule] = [
    *_unit_rules(r"(Conv2d_\w+)", r"\1"),
    *_unit_rules(r"(Mixed_\w+)\.(branch\w+)", r"\1/\2"),
    (r"fc\.weight", "fc_kernel", TRANSPOSE),
    (r"fc\.bias", "fc_bias", COPY),
]


def convert_inception(
    state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], dropped: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Parameters of a `FidInception` from the state dict that pytorch-fid and torch-fidelity load.

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
