"""Classifier-free guidance (Ho & Salimans 2022) as a wrapper around a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from pixart_jax.samplers.steps import Denoiser


def guide(model: Callable, conditions: Mapping, null: Mapping | None, guidance_scale) -> Denoiser:
    """eps = null + scale·(conditional - null) over every eps channel; the variance is the conditional one.

    The reference's IDDPM guides three of four channels by mistake; nothing here does.

    Args:
      model: (x, t, conditions) -> (eps, v); called once per step with the null and the conditional batch side by side.
      conditions: arrays of leading axis B.
      null: those of them that differ in the null branch, e.g. `null_branch(conditions)`; None switches guidance off.
      guidance_scale: float or traced f32[]: one program serves all scales.
    """
    if null is None:
        return lambda x, t: model(x, t, conditions)
    both = {name: _pairs(null.get(name, value), value) for name, value in conditions.items()}

    def denoise(x, t):
        eps, v = model(_pairs(x, x), _pairs(t, t), both)
        null, cond = _unpaired(eps)
        return null + guidance_scale * (cond - null), None if v is None else _unpaired(v)[1]

    return denoise


# Rows of a sample lie next to each other, so that a batch that is split over devices stays where it is.


def _pairs(null, cond):
    """[B, ...] twice as [2B, ...]: a row of one, a row of the other."""
    return jnp.stack([null, cond], axis=1).reshape(-1, *cond.shape[1:])


def _unpaired(both):
    """The two [B, ...] of `_pairs`."""
    pairs = both.reshape(-1, 2, *both.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def null_branch(conditions: Mapping) -> dict[str, np.ndarray]:
    """The null branch as the reference samples it: the null caption at the prompt's own length (or the null label)."""
    return {"text_drop": np.ones(conditions["text_drop"].shape, bool)}
