"""Key/value compression put into blocks that were trained without it. numpy only.

Source: PixArt-Σ (Chen et al. 2024) §3.3, whose convolution starts as a mean, and whose code puts a LayerNorm behind it
that keys and values share. With that norm at scale 1 and bias 0, keys and values lose their magnitudes: the function is
another from the first step. `preserve` starts the same layers, and no others, so that the norm does next to nothing.

For x in R^D, a vector u of D/2 ones and D/2 minus ones, and B far above the standard deviation σ of x's components,

    LN(x + B u) = (x + B u − m) / √(B² + 2 B <x, u>/D + Var x),  m = mean x
                = u + (x − m − u <x, u>/D) / B + O(σ²/B²),

so that with the bias B u before the norm, its scale B and its bias −B u, x comes out again, but for its components
along (1, ..., 1) and u, 2 dimensions of D, and an error of O(σ²/B). Where B is too large, what precedes the norm is
rounded more coarsely than x would be: in bfloat16 by B/σ times as much.
"""

from __future__ import annotations

import numpy as np

from pixart_jax.models.pixart import PixArt

# B/σ. Measured from 2 to 32 it hardly matters; σ is told from the weights alone and may be off by a few times.
MARGIN = 8.0

_LAYERS = ("attn/sr_kernel", "attn/sr_bias", "attn/norm/scale", "attn/norm/bias")

# By method: the parameters of a block, after its stack's name, that are made, and of what.
INSERTED = {
    "reference": dict.fromkeys(_LAYERS, "as the reference starts it: the mean of each block of tokens, normalised"),
    "preserve": dict.fromkeys(_LAYERS, "the mean of each block of tokens, with a norm that preserves it"),
}


def insert(blocks: dict[str, np.ndarray], ratio: int, model: PixArt, method: str) -> dict[str, np.ndarray]:
    """The parameters of blocks with compression, from those of the same blocks without.

    Args:
      blocks: path after the stack's name to f32 array [blocks, ...].
      ratio: r.
      method: a key of INSERTED: the norm as the reference starts it, or so that it does next to nothing.
    """
    depth, width = len(blocks["attn/qkv/bias"]), model.hidden_size
    margin = np.zeros((depth, 1)) if method == "reference" else MARGIN * _deviation(blocks)
    offset = (margin * np.where(np.arange(width) % 2, -1, 1)).astype(np.float32)
    scale = np.ones((depth, 1)) if method == "reference" else margin
    return blocks | {
        "attn/sr_kernel": np.full((depth, ratio**2, width), 1 / ratio**2, np.float32),
        "attn/sr_bias": offset,
        "attn/norm/scale": np.broadcast_to(scale, (depth, width)).astype(np.float32),
        "attn/norm/bias": -offset,
    }


def _deviation(blocks: dict[str, np.ndarray]) -> np.ndarray:
    """σ of keys or values, whichever is the larger, in each block, f64[blocks, 1], for inputs of variance 1."""
    _, *kernels = np.split(blocks["attn/qkv/kernel"], 3, axis=-1)
    _, *biases = np.split(blocks["attn/qkv/bias"], 3, axis=-1)
    pairs = zip(kernels, biases, strict=True)
    squares = [_mean_square(kernel).sum(axis=1) + _mean_square(bias) for kernel, bias in pairs]
    if "attn/k_norm/scale" in blocks:
        squares[0] = _mean_square(blocks["attn/k_norm/scale"]) + _mean_square(blocks["attn/k_norm/bias"])
    return np.sqrt(np.maximum(*squares))[:, None]


def _mean_square(array: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    return np.square(array, dtype=np.float64).mean(axis=-1)
