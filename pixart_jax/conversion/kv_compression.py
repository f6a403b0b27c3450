"""Key/value compression put into blocks that were trained without it. numpy only.

Source: PixArt-Σ (Chen et al. 2024) §3.3; the released code for how it starts.
"""

from __future__ import annotations

import numpy as np

from pixart_jax.models.pixart import PixArt

_START = "as the reference starts it: the mean of each block of tokens, normalised"

# By method: the parameters of a block, after its stack's name, that are made, and of what.
INSERTED = {
    "reference": dict.fromkeys(("attn/sr_kernel", "attn/sr_bias", "attn/norm/scale", "attn/norm/bias"), _START),
}


def insert(blocks: dict[str, np.ndarray], ratio: int, model: PixArt, method: str) -> dict[str, np.ndarray]:
    """The parameters of blocks with compression, from those of the same blocks without.

    Args:
      blocks: path after the stack's name to f32 array [blocks, ...].
      ratio: r.
      method: a key of INSERTED.
    """
    depth, width = len(blocks["attn/qkv/bias"]), model.hidden_size
    return blocks | {
        "attn/sr_kernel": np.full((depth, ratio**2, width), 1 / ratio**2, np.float32),
        "attn/sr_bias": np.zeros((depth, width), np.float32),
        "attn/norm/scale": np.ones((depth, width), np.float32),
        "attn/norm/bias": np.zeros((depth, width), np.float32),
    }
