"""What some blocks changed at an earlier step, once more: between two steps it hardly differs.

At every so many-th step the whole model runs, and what its blocks from one to another added to the tokens is kept; the
steps between add that again in their place. Source: Δ-DiT (Chen et al. 2024, arXiv:2406.01125), which does it with
PixArt-α. It knows no sampler: a step is one call of the model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply, Stateful
from pixart_jax.shortcuts import pieces


@dataclasses.dataclass(frozen=True)
class Reuse:
    """How much is left out.

    Attributes:
      every: the whole model runs at every so many-th step, the first among them.
      first, last: shares of the blocks, before and behind those that are left out between, in [0, 1].
    """

    every: int
    first: float
    last: float

    def span(self, depth: int) -> tuple[int, int]:
        """The first block that is left out, and the first behind those."""
        return round(self.first * depth), depth - round(self.last * depth)

    def whole_steps(self, num_steps: int) -> int:
        """How many of so many steps run the whole model."""
        return -(-num_steps // self.every)


# By how many times fewer FLOPs a picture of 20 steps takes, about.
PRESETS = {
    "1.3": Reuse(2, 0.25, 0.25),
    "1.5": Reuse(2, 1 / 6, 1 / 6),
    "2": Reuse(3, 1 / 6, 1 / 12),
}


def whole_pass(model: PixArt, how: Reuse) -> Apply:
    """The model, with or without `text_memory` -> (its prediction, what the blocks of the span changed [B, N, D])."""
    first, stop = how.span(model.depth)

    def apply(params, tokens, t, *, text_memory=None, **conditions):
        x, cond = pieces.begin(model, params, tokens, t, **conditions)
        run = functools.partial(pieces.run_blocks, model, params, cond=cond, memory=text_memory)
        before = run(x, stop=first)
        after = run(before, first=first, stop=stop)
        return pieces.predict(model, params, run(after, first=stop), cond), after - before

    return apply


def short_pass(model: PixArt, how: Reuse) -> Apply:
    """As `whole_pass`, with what the blocks changed given as `change`, and handed on."""
    first, stop = how.span(model.depth)

    def apply(params, tokens, t, *, change, text_memory=None, **conditions):
        x, cond = pieces.begin(model, params, tokens, t, **conditions)
        run = functools.partial(pieces.run_blocks, model, params, cond=cond, memory=text_memory)
        return pieces.predict(model, params, run(run(x, stop=first) + change, first=stop), cond), change

    return apply


def reusing(model: PixArt, over: Callable[[Apply], Apply], how: Reuse) -> Stateful:
    """The model as `program.make_sample_fn` takes one that hands something on: its calls so far, and the change.

    It takes the text, or what `text_once.remember_text` makes of it.

    Args:
      over: what adapters make of a callable of the model's parameters.
    """
    whole, short = over(whole_pass(model, how)), over(short_pass(model, how))

    def call(params, tokens, t, state, **conditions):
        number, change = state
        output, change = jax.lax.cond(
            number % how.every == 0,
            lambda: whole(params, tokens, t, **conditions),
            lambda: short(params, tokens, t, change=change, **conditions),
        )
        return output, (number + 1, change)

    def begin(tokens):
        return jnp.int32(0), jnp.zeros((*tokens.shape[:2], model.hidden_size), model.dtype)

    return Stateful(call, begin)
