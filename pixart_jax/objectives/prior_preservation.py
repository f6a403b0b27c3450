"""DreamBooth: a few pictures of a subject are learnt, and the model's own pictures of its class are kept.

Source: Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", eq. 2,
with the batch of diffusers' script: one half of each kind, each half's loss a mean of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from pixart_jax.diffusion.predictions import min_snr_weights
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.denoising import noised_terms
from pixart_jax.objectives.objective import LossFn
from pixart_jax.objectives.timesteps import UNIFORM, Timesteps

# Of the batch: bool[B], whether a row is one of the class's pictures.
IS_PRIOR = "is_prior"


def prior_preservation_loss(
    apply: Callable,
    schedule: DiffusionSchedule,
    *,
    prior_weight: float,
    snr: bool = False,
    min_snr_gamma: float = 0.0,
    prediction: str = "eps",
    timesteps: Timesteps = UNIFORM,
) -> LossFn:
    """The subject's loss plus `prior_weight` times the class's, each `denoising.diffusion_loss` over its rows.

    Every row has a timestep and a noise of its own. As many rows are of one kind as of the other, in any order; so a
    row's share of both means is 2/B, and the loss stays a mean over rows however the batch is split.

    Args:
      apply: `Adapter.apply`.
      schedule: the training process.
      prior_weight: λ.
      snr: see `denoising.diffusion_terms`.
      min_snr_gamma: of the subject's rows, see `predictions.min_snr_weights`; 0 weights all timesteps alike.
      prediction, timesteps: as of `denoising.diffusion_loss`.
    """

    def loss_fn(trained, held, batch, keys):
        batch = dict(batch)
        is_prior = batch.pop(IS_PRIOR)
        terms, t = noised_terms(
            apply, schedule, trained, held, batch, keys, snr=snr, prediction=prediction, timesteps=timesteps
        )
        if min_snr_gamma:
            weights = jnp.where(is_prior, 1.0, min_snr_weights(schedule, t, min_snr_gamma, prediction))
            terms["mse"] = terms["mse"] * weights
        total = sum(terms.values())
        metrics = {
            "subject": 2 * jnp.mean(jnp.where(is_prior, 0.0, total)),
            "prior": 2 * jnp.mean(jnp.where(is_prior, total, 0.0)),
        }
        loss = metrics["subject"] + prior_weight * metrics["prior"]
        return loss, {"loss": loss, **metrics}

    return loss_fn
