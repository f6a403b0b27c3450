"""AdamW that needs no schedule: what is evaluated is an average of where its steps lead, made as it goes.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682, Algorithm 1; `optax.contrib.schedule_free`.

Three sequences: z, which the steps move; x, a weighted mean of it, which is evaluated; and y, between the two, where
gradients are taken, which is what a state has as its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free


def schedule_free_adamw(
    rate: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, decay_mask: Callable
) -> optax.GradientTransformation:
    """Gradients at y to updates of y. `optax.contrib.schedule_free_adamw`, whose weight decay spares what is masked.

    The state takes 8 bytes per parameter, z and the squares' average: as much as AdamW's.

    Args:
      rate: without a decay; the mean's weights are its squares.
      b1: above 0; y is b1·x + (1 - b1)·z.
      decay_mask: of parameters, those that decay. The others, without gradient, stay bit for bit as they are.
    """
    steps = optax.chain(
        optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(rate),
    )

    def keep_data(updates, params):
        # y is computed of x and z anew in each step, which would round it.
        return jax.tree.map(
            lambda update, moves: update if moves else jnp.zeros_like(update), updates, decay_mask(params)
        )

    return optax.chain(schedule_free(steps, rate, b1=b1), optax.stateless(keep_data))


def settled(opt_state: optax.OptState, params: Any) -> Any:
    """The parameters that are evaluated, averaged and drawn with: x of `schedule_free_adamw`; else those at which
    gradients are taken.

    `optax.contrib.schedule_free_eval_params` in a form that is exact where y and z are equal.

    Args:
      opt_state: of any optimizer, however deep in it the state of a schedule-free one lies.
    """
    states = jax.tree.leaves(opt_state, is_leaf=_is_schedule_free)
    found = next((state for state in states if _is_schedule_free(state)), None)
    if found is None:
        return params
    return jax.tree.map(lambda y, z: y + (1 - found.b1) / found.b1 * (y - z), params, found.z)


def _is_schedule_free(state) -> bool:
    return isinstance(state, ScheduleFreeState)
