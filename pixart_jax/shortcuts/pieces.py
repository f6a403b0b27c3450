"""The denoiser's forward pass in pieces: what comes before the blocks, the blocks, what comes after them.

Shortcuts leave the blocks out, or hand them what they would compute.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.layers import HeadsDense
from pixart_jax.models.pixart import Block, BlockConditions, ModelOutput, PixArt

# What takes the place of the weights of keys and values of the text, in a block that is handed these.
KEYS_VALUES = "keys_values"


def begin(model: PixArt, params, tokens, t, *, positions, text=None, **conditions) -> tuple[jax.Array, BlockConditions]:
    """The blocks' input [B, N, D], and what they are conditioned on; arguments as those of `PixArt`.

    Args:
      text: None leaves the caption out, for blocks that are handed keys and values.
    """
    bound = model.bind({"params": params})
    text = jnp.zeros((len(tokens), 0, model.text_dim), model.dtype) if text is None else text
    return bound.embed_tokens(tokens, positions), bound.embed_conditions(t, text=text, **conditions)


def run_blocks(model: PixArt, params, x, cond: BlockConditions, *, memory=None) -> jax.Array:
    """All blocks, one after the other, of x [B, N, D].

    Args:
      memory: keys and values of the text, see `text_once.remember_text`; None computes them of `cond.text`.
    """
    for first, length, ratio in model.segments():
        name, block = f"blocks_{first}", Block(**model.block_fields(ratio))
        stack: Any = params[name]
        if memory is not None:
            # Without its weights, what adapters would do to the product is not done again.
            stack = {**stack, "cross_attn": {**stack["cross_attn"], "kv_linear": {KEYS_VALUES: memory[name]}}}

        def step(x, own, block=block):
            return block.apply({"params": own}, x, None, cond)

        with nn.intercept_methods(_hand_over):
            x, _ = jax.lax.scan(step, x, stack, unroll=min(model.scan_unroll, length))
    return x


def predict(model: PixArt, params, x, cond: BlockConditions) -> ModelOutput:
    """What the last block leaves, as a prediction."""
    found: ModelOutput = model.bind({"params": params}).predict(x, cond)
    return found


def _hand_over(call, args, kwargs, context):
    module = context.module
    if isinstance(module, HeadsDense) and module.has_variable("params", KEYS_VALUES):
        return module.get_variable("params", KEYS_VALUES)
    return call(*args, **kwargs)
