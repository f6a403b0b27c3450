"""PyTorch names of diffusers' AutoencoderKL to ours and back: rules, strict in both directions. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, Layout, Rule, convert, norm, other_names, revert


def _conv_kernel(weight):
    """[out, in, rows, columns] to [rows, columns, in, out]."""
    return weight.transpose(2, 3, 1, 0)


def _dense_kernel(weight):
    """[out, in], or the same as a 1×1 convolution, to [in, out]."""
    return weight.T.reshape(-1, len(weight))


CONV_KERNEL = Layout(_conv_kernel, lambda kernel, _: kernel.transpose(3, 2, 0, 1))
DENSE_KERNEL = Layout(_dense_kernel, lambda kernel, _: kernel.T)


def _layer(source: str, target: str, kernel: Layout) -> list[Rule]:
    return [(rf"{source}\.weight", f"{target}/kernel", kernel), (rf"{source}\.bias", f"{target}/bias", COPY)]


def _resnets(source: str, target: str) -> list[Rule]:
    """Of the residual blocks inside `source`, which has all of its groups in `target`."""
    groups = source.count("(")
    source, target = rf"{source}\.resnets\.(\d+)\.", rf"{target}/resnets_\{groups + 1}/\{groups + 2}"
    convs = _layer(source + "(conv1|conv2|conv_shortcut)", target, CONV_KERNEL)
    return convs + norm(source + "(norm1|norm2)", target)


_HALF = "(encoder|decoder)"
_LEVEL = rf"{_HALF}\.(down_blocks|up_blocks)\.(\d+)"
_ATTENTION = rf"{_HALF}\.mid_block\.attentions\.0"


def _attention(source: str, target: str) -> list[Rule]:
    return _layer(rf"{_ATTENTION}\.{source}", rf"\1/mid_block/attentions_0/{target}", DENSE_KERNEL)


_RULES: list[Rule] = [
    *_layer("(quant_conv|post_quant_conv)", r"\1", CONV_KERNEL),
    *_layer(rf"{_HALF}\.(conv_in|conv_out)", r"\1/\2", CONV_KERNEL),
    *norm(rf"{_HALF}\.conv_norm_out", r"\1/conv_norm_out"),
    *_resnets(rf"{_HALF}\.mid_block", r"\1/mid_block"),
    *_resnets(_LEVEL, r"\1/\2_\3"),
    *_layer(rf"{_LEVEL}\.(downsamplers|upsamplers)\.0\.conv", r"\1/\2_\3/\4_0", CONV_KERNEL),
    *norm(rf"{_ATTENTION}\.group_norm", r"\1/mid_block/attentions_0/group_norm"),
    *_attention("(to_q|to_k|to_v)", r"\2"),
    *_attention(r"to_out\.0", "to_out_0"),
    # diffusers' names until 2023, which the released files of Stable Diffusion's autoencoders still have.
    *other_names(_attention("query", "to_q")),
    *other_names(_attention("key", "to_k")),
    *other_names(_attention("value", "to_v")),
    *other_names(_attention("proj_attn", "to_out_0")),
]

# No two blocks are alike, so nothing is stacked: no name matches the pattern of a block.
_BLOCK = "(?!)"


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
    return convert(state_dict, _RULES, _BLOCK, [], {}, expected)


def revert_vae(paths: Iterable[str], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of diffusers' state dict, the attention under its new names.

    Args, returns and errors as `rules.revert`.
    """
    return revert(paths, read, _RULES, _BLOCK, [], {})
