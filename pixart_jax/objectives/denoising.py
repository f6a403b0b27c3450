"""The loss of ordinary training: the noise is predicted, or what else a model predicts of it, and the variance where it
is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.predictions import eps_of, levels, min_snr_weights, noised, wanted
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.objective import LossFn
from pixart_jax.objectives.timesteps import UNIFORM, Timesteps


def token_mean(values, num_tokens):
    """Mean of [B, N, F] over real tokens and features: f32[B]. num_tokens: i32[B]."""
    real = jnp.arange(values.shape[1]) < num_tokens[:, None]
    return jnp.sum(values * real[..., None], axis=(1, 2)) / (num_tokens * values.shape[2])


def diffusion_terms(
    schedule: DiffusionSchedule,
    output,
    x0,
    x_t,
    t,
    noise,
    num_tokens,
    *,
    snr: bool = False,
    prediction: str = "eps",
):
    """Per-sample terms of the diffusion loss, each f32[B]: {"mse", "vb"} ("vb" where the variance is learned).

    `snr` is the reference's `snr_loss` (off in every config it ships): the error is measured in x_0 for t ≤ 249, in
    eps above. `output.eps` is whatever is predicted, one of `predictions.PREDICTIONS`.
    """
    target, found = wanted(prediction, schedule, x0, t, noise), output.eps
    if snr:
        in_eps = (t > 249).reshape(-1, 1, 1)
        target = jnp.where(in_eps, noise, x0)
        found = jnp.where(in_eps, output.eps, gaussian.predict_x0(schedule, x_t, t, output.eps))
    terms = {"mse": token_mean(jnp.square(target - found), num_tokens)}
    if output.v is not None:
        eps = output.eps
        if prediction != "eps":
            alpha, sigma = levels(prediction, schedule, t, x_t)
            eps = eps_of(prediction, alpha, sigma, x_t, eps)
        terms["vb"] = token_mean(gaussian.vlb_bits(schedule, x0, x_t, t, eps, output.v), num_tokens)
    return terms


def without_variance(apply: Callable) -> Callable:
    """An `Adapter.apply` whose output leaves out the learned variance, so that the loss holds no bound of it."""

    def apply_without(*arguments, **conditions):
        return apply(*arguments, **conditions)._replace(v=None)

    return apply_without


class Drawn(NamedTuple):
    """What a model made of noisy tokens.

    Attributes:
      terms: see `diffusion_terms`.
      t: i32[B], the timesteps; of rectified flow f32[B].
    """

    terms: dict[str, jax.Array]
    t: jax.Array


def noised_terms(
    apply: Callable,
    schedule: DiffusionSchedule,
    trained,
    held,
    batch,
    keys,
    *,
    snr: bool,
    prediction: str = "eps",
    timesteps: Timesteps = UNIFORM,
) -> Drawn:
    """The loss's terms of each sample at a timestep of its own; arguments as of `diffusion_loss`."""
    x0 = batch["tokens"].astype(jnp.float32)
    conditions = {name: value for name, value in batch.items() if name != "tokens"}
    t_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    t = timesteps.draw(t_keys, schedule.num_steps, continuous=prediction == "flow")
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(noise_keys)
    x_t = noised(prediction, schedule, x0, t, noise)
    output = apply(trained, held.frozen, x_t, t, **conditions)
    num_tokens = batch["num_tokens"]
    terms = diffusion_terms(schedule, output, x0, x_t, t, noise, num_tokens, snr=snr, prediction=prediction)
    return Drawn(terms, t)


def diffusion_loss(
    apply: Callable,
    schedule: DiffusionSchedule,
    *,
    snr: bool = False,
    min_snr_gamma: float = 0.0,
    prediction: str = "eps",
    timesteps: Timesteps = UNIFORM,
) -> LossFn:
    """The prediction's MSE plus, with weight 1, the learned variance's bound in bits, at a timestep per sample.

    Args:
      apply: `Adapter.apply`.
      schedule: the training process, but of rectified flow, which is its own.
      snr: see `diffusion_terms`.
      min_snr_gamma: the MSE's weights, see `predictions.min_snr_weights`; 0 weights all timesteps alike. What is
        reported as "mse" is the weighted one.
      prediction: one of `predictions.PREDICTIONS`.
      timesteps: the density.
    """

    def loss_fn(trained, held, batch, keys):
        terms, t = noised_terms(
            apply, schedule, trained, held, batch, keys, snr=snr, prediction=prediction, timesteps=timesteps
        )
        if min_snr_gamma:
            terms["mse"] = terms["mse"] * min_snr_weights(schedule, t, min_snr_gamma, prediction)
        metrics = {name: value.mean() for name, value in terms.items()}
        loss = sum(metrics.values())
        return loss, {"loss": loss, **metrics}

    return loss_fn
