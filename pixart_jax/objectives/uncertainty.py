"""The denoising loss, weighed at each noise level by what can be expected of it there.

Source: Kendall et al. 2018, arXiv:1705.07115; of noise levels EDM2 (Karras et al. 2023, arXiv:2312.02696).
"""

from __future__ import annotations

import jax.numpy as jnp

from pixart_jax.adapters.weighed import Weighed
from pixart_jax.diffusion.predictions import levels
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.denoising import noised_terms
from pixart_jax.objectives.objective import LossFn
from pixart_jax.objectives.timesteps import Timesteps


def uncertain_loss(adapter: Weighed, schedule: DiffusionSchedule, *, prediction: str, timesteps: Timesteps) -> LossFn:
    """mse/exp(u) + u with u of the noise level, which is least where exp(u) is the mean of the mse there: every level's
    gradient is then as large as another's. Plus the learned variance's bound, as it is.

    Metrics: "mse" is the error itself, "uncertainty" the mean of u.

    Args:
      adapter: has u.
      schedule, prediction, timesteps: as of `diffusion_loss`.
    """

    def loss_fn(trained, held, batch, keys):
        terms, t = noised_terms(
            adapter.apply,
            schedule,
            trained,
            held,
            batch,
            keys,
            snr=False,
            prediction=prediction,
            timesteps=timesteps,
        )
        u = adapter.uncertainty(trained, *levels(prediction, schedule, t, t))
        metrics = {name: value.mean() for name, value in terms.items()}
        weighed = jnp.mean(terms["mse"] * jnp.exp(-u) + u)
        loss = weighed + sum(value for name, value in metrics.items() if name != "mse")
        return loss, {"loss": loss, **metrics, "uncertainty": u.mean()}

    return loss_fn
