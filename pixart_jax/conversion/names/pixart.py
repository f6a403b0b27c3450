"""The parameter names of PixArt's and DiT's own checkpoints, `.pth` and `.pt`: tables of rules and the position table.
numpy only.

Source: PixArt-alpha, PixArt-sigma and DiT, what their modules call their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pixart_jax.conversion.names.rules import COPY, Layout, Rule, convert, linear, norm, revert


def _patch_kernel(weight):
    """Patch convolution [D, C, p, p] to a Dense kernel [p·p·C, D] over (row, column, channel) patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _patch_weight(kernel, patch_size):
    return kernel.reshape(patch_size, patch_size, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)


def _depthwise_kernel(weight):
    """Depthwise r×r convolution [D, 1, r, r] to [r·r, D]."""
    return weight.reshape(weight.shape[0], -1).T


def _depthwise_weight(kernel, _):
    side = math.isqrt(len(kernel))
    return kernel.T.reshape(-1, 1, side, side)


PATCH_KERNEL = Layout(_patch_kernel, _patch_weight)
DEPTHWISE_KERNEL = Layout(_depthwise_kernel, _depthwise_weight)

BLOCK_RULES: list[Rule] = [
    ("scale_shift_table", "scale_shift_table", COPY),
    *linear(r"adaLN_modulation\.1", "adaLN_modulation"),
    *linear(r"(attn|cross_attn)\.(qkv|q_linear|kv_linear|proj)", r"\1/\2"),
    *linear(r"mlp\.(fc1|fc2)", r"mlp/\1"),
    *norm(r"attn\.(norm|q_norm|k_norm)", r"attn/\1"),
    (r"attn\.sr\.weight", "attn/sr_kernel", DEPTHWISE_KERNEL),
    (r"attn\.sr\.bias", "attn/sr_bias", COPY),
]

MODEL_RULES: list[Rule] = [
    (r"x_embedder\.proj\.weight", "x_embedder/kernel", PATCH_KERNEL),
    (r"x_embedder\.proj\.bias", "x_embedder/bias", COPY),
    *linear(r"(t|csize|ar)_embedder\.mlp\.(0|2)", r"\1_embedder/mlp_\2"),
    *linear(r"t_block\.1", "t_block"),
    *linear(r"y_embedder\.y_proj\.(fc1|fc2)", r"y_embedder/y_proj_\1"),
    (r"y_embedder\.y_embedding", "y_embedder/y_embedding", COPY),
    (r"y_embedder\.embedding_table\.weight", "y_embedder/embedding_table", COPY),
    (r"final_layer\.scale_shift_table", "final_layer/scale_shift_table", COPY),
    *linear(r"final_layer\.linear", "final_layer/linear"),
    *linear(r"final_layer\.adaLN_modulation\.1", "final_layer/adaLN_modulation"),
]

_BLOCK = r"blocks\.(\d+)\.(.+)"

# A table that the model computes from the positions.
DROPPED = {"pos_embed"}

# (first block, number of blocks, kv ratio) of each stack: `PixArt.segments()`.
Segments = Sequence[tuple[int, int, int]]


def stacks(segments: Segments) -> dict[str, range]:
    """Our name of each stack of blocks to their indices."""
    return {f"blocks_{first}": range(first, first + length) for first, length, _ in segments}


def convert_pixart(
    state_dict: Mapping[str, np.ndarray], segments: Segments, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our parameters from a reference state dict of a PixArt or a DiT.

    Args:
      state_dict: PyTorch names to arrays; `pos_embed` is left out.
      segments: `PixArt.segments()`: (first block, number of blocks, kv ratio) of each stack.
      expected: '/'-joined path to shape of each parameter of the model.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: lists every source key that no rule or parameter takes, every parameter left empty, and every wrong
        shape.
    """
    return convert(state_dict, MODEL_RULES, _BLOCK, BLOCK_RULES, stacks(segments), expected, dropped=DROPPED)


def revert_pixart(
    paths: Iterable[str], read: Callable[[str], np.ndarray], segments: Segments, patch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a PixArt's or a DiT's own checkpoint, but for `pos_embed` (`position_table`).

    Args, returns and errors as `rules.revert`; segments as in `convert_pixart`.
    """
    return revert(paths, read, MODEL_RULES, _BLOCK, BLOCK_RULES, stacks(segments), patch_size=patch_size)


def position_table(base: int, scale: float, hidden_size: int) -> np.ndarray:
    """The `pos_embed` of a square of base×base tokens, f32[1, base², D], bit for bit as the reference makes it.

    The reference's loaders delete the array and make it again; the α inference scripts fail where there is none to
    delete. See `models.layers.sincos_2d` for the order of its channels.
    """
    omega = 1 / 10000 ** (np.arange(hidden_size // 4, dtype=np.float64) / (hidden_size / 4))
    positions = np.arange(base, dtype=np.float32) / np.float32(scale)
    angles = positions.astype(np.float64)[:, None] * omega
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    shape = (base, base, hidden_size // 2)
    table = np.concatenate([np.broadcast_to(axis, shape), np.broadcast_to(axis[:, None], shape)], axis=-1)
    return table.reshape(1, base * base, hidden_size)
