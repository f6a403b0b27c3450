"""Classifier-free guidance (Ho & Salimans 2022) as a wrapper around a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from pixart_jax.samplers.multistep import Denoiser


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
    both = {name: jnp.concatenate([null.get(name, value), value]) for name, value in conditions.items()}

    def denoise(x, t):
        eps, v = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        null, cond = jnp.split(eps, 2)
        return null + guidance_scale * (cond - null), None if v is None else jnp.split(v, 2)[1]

    return denoise


def null_branch(conditions: Mapping) -> dict[str, np.ndarray]:
    """The null branch as the reference samples it: the null caption at the prompt's own length (or the null label)."""
    return {"text_drop": np.ones(conditions["text_drop"].shape, bool)}
