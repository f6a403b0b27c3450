"""What a run descends: an objective is a gradient, so that one of several networks is no special case."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from pixart_jax.adapters.adapter import Params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Held(NamedTuple):
    """What an objective may look at and does not train.

    Attributes:
      frozen: the adapter's frozen half, and whatever else does not change: a teacher.
      ema: the moving average of what is drawn with of the trained parameters, as it was before the step.
      step: i32[], steps done before this one.
    """

    frozen: Params
    ema: Params
    step: jax.Array | int = 0


# (trained, held, batch, one PRNG key per sample [B]) -> (gradients of the trained, scalar metrics, among them "loss").
# A key per sample makes the draws independent of how a batch is split over devices or accumulation steps.
Gradients = Callable[[Params, Held, Batch, jax.Array], tuple[Params, Metrics]]

# (trained, held, batch, keys [B]) -> (scalar loss, scalar metrics, among them "loss").
LossFn = Callable[[Params, Held, Batch, jax.Array], tuple[jax.Array, Metrics]]


def descend(loss: LossFn) -> Gradients:
    """The gradient of a loss."""
    grad_fn = jax.value_and_grad(loss, has_aux=True)

    def gradients(trained, held, batch, keys):
        (_, metrics), grads = grad_fn(trained, held, batch, keys)
        return grads, metrics

    return gradients


# What the keys of a condition are folded with: no objective makes so many others of a sample's key.
_SALTS = {"adapter_keys": 1 << 20, "route_keys": 2 << 20}


def with_keys(gradients: Gradients, *names: str) -> Gradients:
    """An objective whose model draws random numbers too, of a key for each sample: the conditions of these names [B],
    those of `_SALTS`.

    What the objective itself draws stays as it is.
    """

    def with_more(trained, held, batch, keys):
        own = {name: jax.vmap(lambda key, salt=_SALTS[name]: jax.random.fold_in(key, salt))(keys) for name in names}
        return gradients(trained, held, batch | own, keys)

    return with_more if names else gradients
