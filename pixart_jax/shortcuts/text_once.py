"""The text once per picture, not once per step: the caption's projection, and its keys and values in every block.

They depend on the caption alone. What is computed is the same, to the last bits.
"""

from __future__ import annotations

import jax

from pixart_jax.devices.sharding import ROWS, WHOLE, constrain
from pixart_jax.models.layers import HeadsDense
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply
from pixart_jax.shortcuts import pieces

# The condition that stands in the place of `text` and `text_drop`.
MEMORY = "text_memory"


def remember_text(model: PixArt) -> Apply:
    """(params, tokens, t, **conditions) -> the conditions, with `text_memory` in place of the text.

    It is called as the model is, so that adapters can be laid over it, and looks at the text alone. `text_memory` is by
    name of each stack of blocks its keys and values, [blocks, B, L, D] each in the model's dtype: with XL/2 and 300
    tokens in bfloat16 they are 39 MB per picture, and as much for guidance's other branch.
    """

    def prepare(params, tokens, t, *, text, text_drop=None, **conditions):
        del tokens, t
        mesh = model.attention.mesh
        embedded = model.apply(
            {"params": params}, text, text_drop, method=lambda bound, text, drop: bound.y_embedder(text, drop)
        )
        embedded = constrain(embedded, mesh, ROWS, WHOLE)
        layer = HeadsDense(model.hidden_size, 2, model.num_heads, mesh, model.dtype)
        memory = {}
        for first, length, _ in model.segments():
            name = f"blocks_{first}"
            _, memory[name] = jax.lax.scan(
                lambda carry, own: (carry, layer.apply({"params": own}, embedded)),
                None,
                params[name]["cross_attn"]["kv_linear"],
                unroll=min(model.scan_unroll, length),
            )
        return {**conditions, MEMORY: memory}

    return prepare


def with_memory(model: PixArt) -> Apply:
    """The model, given the conditions that `remember_text` gives."""

    def apply(params, tokens, t, *, text_memory, **conditions):
        x, cond = pieces.begin(model, params, tokens, t, **conditions)
        return pieces.predict(model, params, pieces.run_blocks(model, params, x, cond, memory=text_memory), cond)

    return apply
