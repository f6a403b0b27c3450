"""A loss beside another: what an early block makes of noisy tokens is drawn to a frozen network's view of the picture.

Source: REPA (Yu et al. 2024, arXiv:2410.06940), eq. 8, with the cosine as similarity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from pixart_jax.adapters.aligned import TARGETS, Aligned
from pixart_jax.models.routing import Tapped
from pixart_jax.objectives.objective import LossFn


def cosine_distance(found, wanted, num_tokens):
    """Mean over real tokens of 1 - cos: f32[B] in [0, 2].

    Args:
      found, wanted: [B, K, F].
      num_tokens: i32[B], how many of the K are real; None when all are.
    """
    found, wanted = (_unit(array.astype(jnp.float32)) for array in (found, wanted))
    distance = 1 - jnp.sum(found * wanted, axis=-1)
    if num_tokens is None:
        return distance.mean(1)
    real = jnp.arange(distance.shape[1]) < num_tokens[:, None]
    return jnp.sum(jnp.where(real, distance, 0), axis=1) / jnp.maximum(num_tokens, 1)


def _unit(vectors):
    # No square root of 0, whose gradient is infinite: padding's targets are zeros.
    return vectors / jnp.sqrt(jnp.sum(jnp.square(vectors), -1, keepdims=True) + 1e-12)


def aligned_loss(loss_of: Callable[[Callable], LossFn], adapter: Aligned, *, weight: float) -> LossFn:
    """A loss and `weight` times the alignment, of one call of the model. "align" among the metrics is the mean of
    `cosine_distance`, unweighted.

    Args:
      loss_of: makes the other loss of an `Adapter.apply`, which it calls once; batches have TARGETS.
      adapter: has the projector.
    """

    def loss_fn(trained, held, batch, keys):
        rest = dict(batch)
        targets = rest.pop(TARGETS)
        seen: list[Tapped] = []

        def apply(trained, frozen, tokens, t, **conditions):
            output, tapped = adapter.look(trained, tokens, t, **conditions)
            seen.append(tapped)
            return output

        loss, metrics = loss_of(apply)(trained, held, rest, keys)
        (tapped,) = seen
        found = adapter.project(trained, tapped.features)
        align = cosine_distance(found, tapped.pick(targets), tapped.num_tokens).mean()
        loss = loss + weight * align
        return loss, metrics | {"loss": loss, "align": align}

    return loss_fn
