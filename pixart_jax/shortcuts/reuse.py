"""What the blocks changed at earlier steps, foretold: from one step to the next it hardly differs, and evenly.

At some steps no block runs: what they would add to the tokens is extrapolated from the last two steps at which they
did. Sources: Δ-DiT (Chen et al. 2024, arXiv:2406.01125) for the change as what is kept, with PixArt-α; TaylorSeer (Liu
et al. 2025, arXiv:2503.06923) for extrapolation in place of using it again as it is, here of first order, and of all
blocks at once: two arrays are held, whatever the depth. It knows no sampler: a step is one call of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply, Stateful
from pixart_jax.shortcuts import pieces


@dataclasses.dataclass(frozen=True)
class Reuse:
    """At which steps no block runs: from `first` on, counted from 0, at every so many-th."""

    every: int
    first: int

    def leaves_out(self, step):
        """Whether at a step, i32[] or an int."""
        return (step >= self.first) & ((step - self.first) % self.every == 0)

    def whole_steps(self, num_steps: int) -> int:
        """At how many of so many steps the blocks run."""
        return sum(not self.leaves_out(step) for step in range(num_steps))


# By how many times less work many steps take. The first two steps are whole, as nothing can be foretold before; with
# the usual 20 the last one is, too, but for "2".
PRESETS = {"1.3": Reuse(4, 2), "1.5": Reuse(3, 2), "2": Reuse(2, 1)}


def whole_pass(model: PixArt) -> Callable[..., Any]:
    """The model, with or without `text_memory` -> (its prediction, what its blocks changed [B, N, D])."""

    def apply(params, tokens, t, *, text_memory=None, **conditions):
        x, cond = pieces.begin(model, params, tokens, t, **conditions)
        after = pieces.run_blocks(model, params, x, cond, memory=text_memory)
        return pieces.predict(model, params, after, cond), after - x

    return apply


def short_pass(model: PixArt) -> Apply:
    """The model without its blocks, given what they would change as `change`."""

    def apply(params, tokens, t, *, change, text=None, text_drop=None, text_memory=None, **conditions):
        del text, text_drop, text_memory
        x, cond = pieces.begin(model, params, tokens, t, **conditions)
        return pieces.predict(model, params, x + change, cond)

    return apply


def reusing(model: PixArt, over: Callable[[Apply], Apply], how: Reuse) -> Stateful:
    """The model as `program.make_sample_fn` takes one that hands something on: the number of the step and of the last
    whole one, what the blocks changed there, and how much more with each step.

    Args:
      over: what adapters make of a callable of the model's parameters.
    """
    whole: Callable[..., Any] = over(whole_pass(model))
    short = over(short_pass(model))

    def call(params, tokens, t, state, **conditions):
        number, last, change, slope = state
        gap = number - last

        def run():
            output, found = whole(params, tokens, t, **conditions)
            # Before the first step there is nothing to compare with.
            rate = jnp.where(number > 0, (found - change) / jnp.maximum(gap, 1).astype(found.dtype), 0)
            return output, (number, found, rate.astype(found.dtype))

        def foretell():
            foretold = change + gap.astype(change.dtype) * slope
            return short(params, tokens, t, change=foretold, **conditions), (last, change, slope)

        output, kept = jax.lax.cond(how.leaves_out(number), foretell, run)
        return output, (number + 1, *kept)

    def begin(tokens):
        nothing = jnp.zeros((*tokens.shape[:2], model.hidden_size), model.stream_dtype)
        return jnp.int32(0), jnp.int32(0), nothing, nothing

    return Stateful(call, begin)
