"""The loss of ordinary training: the noise is predicted, and the variance where it is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.objective import LossFn


def token_mean(values, num_tokens):
    """Mean of [B, N, F] over real tokens and features: f32[B]. num_tokens: i32[B]."""
    real = jnp.arange(values.shape[1]) < num_tokens[:, None]
    return jnp.sum(values * real[..., None], axis=(1, 2)) / (num_tokens * values.shape[2])


def diffusion_terms(schedule: DiffusionSchedule, output, x0, x_t, t, noise, num_tokens, *, snr: bool = False):
    """Per-sample terms of the diffusion loss, each f32[B]: {"mse", "vb"} ("vb" where the variance is learned).

    `snr` is the reference's `snr_loss` (off in every config it ships): the error is measured in x_0 for t ≤ 249, in
    eps above.
    """
    target, prediction = noise, output.eps
    if snr:
        in_eps = (t > 249).reshape(-1, 1, 1)
        target = jnp.where(in_eps, noise, x0)
        prediction = jnp.where(in_eps, output.eps, gaussian.predict_x0(schedule, x_t, t, output.eps))
    terms = {"mse": token_mean(jnp.square(target - prediction), num_tokens)}
    if output.v is not None:
        terms["vb"] = token_mean(gaussian.vlb_bits(schedule, x0, x_t, t, output.eps, output.v), num_tokens)
    return terms


def min_snr_weights(schedule: DiffusionSchedule, t, gamma: float):
    """Weights of the eps error, min(SNR, γ)/SNR with SNR = ᾱ/(1-ᾱ): f32[B] in (0, 1].

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq. 8 for eps.

    Args:
      t: i32[B].
      gamma: γ, 5 in the paper.
    """
    snr = jnp.square(
        jnp.asarray(schedule.sqrt_alphas_cumprod)[t] / jnp.asarray(schedule.sqrt_one_minus_alphas_cumprod)[t]
    )
    return jnp.minimum(snr, gamma) / snr


class Drawn(NamedTuple):
    """What a model made of noisy tokens.

    Attributes:
      terms: see `diffusion_terms`.
      t: i32[B], the timesteps.
    """

    terms: dict[str, jax.Array]
    t: jax.Array


def noised_terms(apply: Callable, schedule: DiffusionSchedule, trained, held, batch, keys, *, snr: bool) -> Drawn:
    """The loss's terms of each sample at a uniform timestep of its own; arguments as of `diffusion_loss`."""
    x0 = batch["tokens"].astype(jnp.float32)
    conditions = {name: value for name, value in batch.items() if name != "tokens"}
    t_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.num_steps))(t_keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(noise_keys)
    x_t = gaussian.q_sample(schedule, x0, t, noise)
    output = apply(trained, held.frozen, x_t, t, **conditions)
    return Drawn(diffusion_terms(schedule, output, x0, x_t, t, noise, batch["num_tokens"], snr=snr), t)


def diffusion_loss(
    apply: Callable, schedule: DiffusionSchedule, *, snr: bool = False, min_snr_gamma: float = 0.0
) -> LossFn:
    """Noise-prediction MSE plus, with weight 1, the learned variance's bound in bits, at a uniform timestep per sample.

    Args:
      apply: `Adapter.apply`.
      schedule: the training process.
      snr: see `diffusion_terms`.
      min_snr_gamma: the MSE's weights, see `min_snr_weights`; 0 weights all timesteps alike. What is reported as "mse"
        is the weighted one.
    """

    def loss_fn(trained, held, batch, keys):
        terms, t = noised_terms(apply, schedule, trained, held, batch, keys, snr=snr)
        if min_snr_gamma:
            terms["mse"] = terms["mse"] * min_snr_weights(schedule, t, min_snr_gamma)
        metrics = {name: value.mean() for name, value in terms.items()}
        loss = sum(metrics.values())
        return loss, {"loss": loss, **metrics}

    return loss_fn
