"""Classifier-free guidance (Ho & Salimans 2022) as a wrapper around a denoiser."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pixart_jax.samplers.multistep import Denoiser


def guide(model: Callable, conditions: dict, null_conditions: dict | None, guidance_scale) -> Denoiser:
    """eps = null + scale·(conditional - null) over every eps channel; the variance is the conditional one.

    The reference's IDDPM guides three of four channels by mistake; nothing here does.

    Args:
      model: (x, t, conditions) -> (eps, v); called once per step with the null and the conditional batch side by side.
      conditions: arrays of leading axis B.
      null_conditions: the same arrays for the null branch, e.g. `null_branch(conditions)`; None switches guidance off.
      guidance_scale: float or traced f32[]: one program serves all scales.
    """
    if null_conditions is None:
        return lambda x, t: model(x, t, conditions)
    both = jax.tree.map(lambda null, cond: jnp.concatenate([null, cond]), null_conditions, conditions)

    def denoise(x, t):
        eps, v = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        null, cond = jnp.split(eps, 2)
        return null + guidance_scale * (cond - null), None if v is None else jnp.split(v, 2)[1]

    return denoise


def null_branch(conditions: dict) -> dict:
    """The null branch as the reference samples it: the null caption at the prompt's own length (or the null label)."""
    return conditions | {"text_drop": jnp.ones_like(conditions["text_drop"])}
