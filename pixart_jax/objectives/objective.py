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


# What the adapter's keys are folded with: no objective makes so many others of a sample's key.
_ADAPTER = 1 << 20


def with_adapter_keys(gradients: Gradients) -> Gradients:
    """An objective whose adapter draws random numbers too, of a key for each sample: the condition `adapter_keys` [B].

    What the objective itself draws stays as it is.
    """

    def with_keys(trained, held, batch, keys):
        own = jax.vmap(lambda key: jax.random.fold_in(key, _ADAPTER))(keys)
        return gradients(trained, held, batch | {"adapter_keys": own}, keys)

    return with_keys
