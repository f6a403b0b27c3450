"""PyTorch parameter names of diffusers' AutoencoderKL to ours: rules, strict in both directions. numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pixart_jax.conversion.rules import COPY, Rule, convert, norm


def _conv_kernel(weight):
    """[out, in, rows, columns] to [rows, columns, in, out]."""
    return weight.transpose(2, 3, 1, 0)


def _dense_kernel(weight):
    """[out, in], or the same as a 1×1 convolution, to [in, out]."""
    return weight.T.reshape(-1, len(weight))


def _layer(source: str, target: str, kernel) -> list[Rule]:
    return [(rf"{source}\.weight", f"{target}/kernel", kernel), (rf"{source}\.bias", f"{target}/bias", COPY)]


def _resnet(source: str, target: str) -> list[Rule]:
    source, target = rf"{source}\.resnets\.(?P<i>\d+)\.", rf"{target}/resnets_\g<i>/\g<layer>"
    convs = _layer(source + "(?P<layer>conv1|conv2|conv_shortcut)", target, _conv_kernel)
    return convs + norm(source + "(?P<layer>norm1|norm2)", target)


_HALF = "(encoder|decoder)"
_LEVEL = rf"{_HALF}\.(down_blocks|up_blocks)\.(\d+)"
_ATTENTION = rf"{_HALF}\.mid_block\.attentions\.0"

_RULES: list[Rule] = [
    *_layer("(quant_conv|post_quant_conv)", r"\1", _conv_kernel),
    *_layer(rf"{_HALF}\.(conv_in|conv_out)", r"\1/\2", _conv_kernel),
    *norm(rf"{_HALF}\.conv_norm_out", r"\1/conv_norm_out"),
    *_resnet(rf"{_HALF}\.mid_block", r"\1/mid_block"),
    *_resnet(_LEVEL, r"\1/\2_\3"),
    *_layer(rf"{_LEVEL}\.(downsamplers|upsamplers)\.0\.conv", r"\1/\2_\3/\4_0", _conv_kernel),
    *norm(rf"{_ATTENTION}\.group_norm", r"\1/mid_block/attentions_0/group_norm"),
    *_layer(rf"{_ATTENTION}\.(to_q|to_k|to_v)", r"\1/mid_block/attentions_0/\2", _dense_kernel),
    *_layer(rf"{_ATTENTION}\.to_out\.0", r"\1/mid_block/attentions_0/to_out_0", _dense_kernel),
    # diffusers' names until 2023, which the released files of Stable Diffusion's autoencoders still have.
    *_layer(rf"{_ATTENTION}\.query", r"\1/mid_block/attentions_0/to_q", _dense_kernel),
    *_layer(rf"{_ATTENTION}\.key", r"\1/mid_block/attentions_0/to_k", _dense_kernel),
    *_layer(rf"{_ATTENTION}\.value", r"\1/mid_block/attentions_0/to_v", _dense_kernel),
    *_layer(rf"{_ATTENTION}\.proj_attn", r"\1/mid_block/attentions_0/to_out_0", _dense_kernel),
]


def convert_vae(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Parameters of an `AutoencoderKL` from diffusers' state dict, its attention under new names or old.

    Args:
      state_dict: PyTorch names to arrays.
      expected: '/'-joined path to shape of each parameter of the model.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: as `rules.convert`, which also refuses one parameter under both of its names.
    """
    # No two blocks are alike, so nothing is stacked: no name matches the pattern of a block.
    return convert(state_dict, _RULES, "(?!)", [], {}, expected)
