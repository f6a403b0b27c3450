"""A model without a stretch of its blocks, which it was trained to do without: the weak branch of guidance.

SPRINT's Path-Drop Guidance (Park et al. 2025, arXiv:2510.21986): weak + scale·(conditional - weak), where the weak
branch has the null caption and of the blocks only those before and behind the stretch that token routing lets tokens
pass by. Of some pictures of the training no token took it (`routing.PATH_DROP`).

What is left is a shallower PixArt, and is called as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.guidance import PATH_DROPPED
from pixart_jax.samplers.steps import Apply

# The first and the last of the blocks that are left out, counted from 0.
Stretch = tuple[int, int]


def may_drop(model: PixArt, stretch: Stretch | None, make: Callable[[PixArt], Apply]) -> Apply:
    """`make(model)`, and where it is given PATH_DROPPED what `make` makes of the model without the stretch.

    Args:
      stretch: None is of a model that cannot do without: `make(model)` as it is.
    """
    whole = make(model)
    if stretch is None:
        return whole
    rest = make(shallow(model, stretch))

    def apply(params, tokens, t, **conditions):
        if conditions.pop(PATH_DROPPED, None) is None:
            return whole(params, tokens, t, **conditions)
        return rest(shallow_params(model, stretch, params), tokens, t, **conditions)

    return apply


def shallow(model: PixArt, stretch: Stretch) -> PixArt:
    """The model of the blocks that are not of the stretch."""
    first, last = stretch
    ratios = model.kv_compress[:first] + model.kv_compress[last + 1 :]
    return model.clone(depth=model.depth - (last + 1 - first), kv_compress=ratios)


def shallow_params(model: PixArt, stretch: Stretch, params: Any) -> dict[str, Any]:
    """Its parameters, out of the model's; whatever stands beside those, an adapter's too, goes along."""
    first, last = stretch
    # Slices of stacks, each with the number of its first block among those that are left.
    slices: list[tuple[int, Any]] = []
    number = 0
    for begin, length, _ in model.segments():
        for low, high in ((begin, min(begin + length, first)), (max(begin, last + 1), begin + length)):
            if low < high:
                part = slice(low - begin, high - begin)
                slices.append((number, jax.tree.map(lambda leaf, part=part: leaf[part], params[f"blocks_{begin}"])))
                number += high - low
    found = {name: own for name, own in params.items() if not name.startswith("blocks_")}
    for begin, length, _ in shallow(model, stretch).segments():
        own = [part for at, part in slices if begin <= at < begin + length]
        found[f"blocks_{begin}"] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *own)
    return found
