"""An optimizer of two networks that are trained against each other, each with rate, clipping and turns of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def in_turns(tx: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """Heeds the first of every so many gradients; between them nothing moves, and no statistics change.

    One program does both, so that none is compiled anew.

    Args:
      tx: sees the gradients of its turns alone.
      every: from one turn to the next.
    """
    if every == 1:
        return tx

    def init(params):
        return {"count": jnp.zeros((), jnp.int32), "inner": tx.init(params)}

    def update(grads, state, params=None):
        is_turn = state["count"] % every == 0
        updates, inner = tx.update(grads, state["inner"], params)
        updates = jax.tree.map(lambda update: jnp.where(is_turn, update, 0), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(is_turn, new, old), inner, state["inner"])
        return updates, {"count": state["count"] + 1, "inner": inner}

    return optax.GradientTransformation(init, update)


def two_networks(
    first: optax.GradientTransformation, second: optax.GradientTransformation, key: str
) -> optax.GradientTransformation:
    """The second for what lies below `key` of a tree of parameters, the first for the rest of it."""

    def rest(tree):
        return {name: part for name, part in tree.items() if name != key}

    def init(params):
        return {"rest": first.init(rest(params)), key: second.init(params[key])}

    def update(grads, state, params):
        updates, rest_state = first.update(rest(grads), state["rest"], rest(params))
        others, key_state = second.update(grads[key], state[key], params[key])
        return {**updates, key: others}, {"rest": rest_state, key: key_state}

    return optax.GradientTransformation(init, update)
