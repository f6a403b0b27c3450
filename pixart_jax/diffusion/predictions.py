"""What a model may predict of noisy latents, and how one prediction becomes another.

"eps" is the noise, "x0" the picture and "v" √ᾱ·eps - √(1-ᾱ)·x_0 (Salimans & Ho 2022, arXiv:2202.00512), all of the
discrete process in `gaussian`; "flow" is eps - x_0 of rectified flow, see `flow`. x, x0, noise, output: f32[B, ...].
"""

from __future__ import annotations

import jax.numpy as jnp

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.flow import FLOW_STEPS
from pixart_jax.diffusion.schedule import DiffusionSchedule

PREDICTIONS = ("eps", "x0", "v", "flow")


def levels(prediction: str, schedule: DiffusionSchedule, t, x):
    """(alpha, sigma) of x_t = alpha·x_0 + sigma·noise, broadcasting against x.

    Args:
      t: i32[B], an index into the schedule; of "flow" f32[B] in [0, 1000], which needs no schedule.
    """
    if prediction == "flow":
        sigma = (t / FLOW_STEPS).astype(jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))
        return 1 - sigma, sigma
    tables = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    alpha, sigma = (gaussian.at(table, t, x) for table in tables)
    return alpha, sigma


def noised(prediction: str, schedule: DiffusionSchedule, x0, t, noise):
    """x_t of the process in which a model predicts; t as in `levels`."""
    if prediction != "flow":
        return gaussian.q_sample(schedule, x0, t, noise)
    alpha, sigma = levels(prediction, schedule, t, x0)
    return alpha * x0 + sigma * noise


def wanted(prediction: str, schedule: DiffusionSchedule, x0, t, noise):
    """What a model should predict; t as in `levels`."""
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return x0
    if prediction == "flow":
        return noise - x0
    alpha, sigma = levels(prediction, schedule, t, x0)
    return alpha * noise - sigma * x0


def eps_of(prediction: str, alpha, sigma, x, output):
    """The noise that a prediction of x = alpha·x_0 + sigma·eps implies, with alpha² + sigma² = 1.

    Of "flow", alpha + sigma = 1 instead.
    """
    if prediction == "eps":
        return output
    if prediction == "x0":
        return (x - alpha * output) / sigma
    return alpha * output + sigma * x if prediction == "v" else x + alpha * output


def min_snr_weights(schedule: DiffusionSchedule, t, gamma: float, prediction: str = "eps"):
    """Weights of the squared error, which make that of x_0 count min(SNR, γ) times: f32[B].

    SNR is alpha²/sigma²; so those of eps are min(SNR, γ)/SNR, of x_0 min(SNR, γ), of v min(SNR, γ)/(SNR + 1) and of the
    flow sigma²·min(SNR, γ).

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv:2303.09556, §3.4;
    the flow's by the same arithmetic.

    Args:
      t: as in `levels`.
      gamma: γ, 5 in the paper.
    """
    if prediction == "flow":
        alpha, sigma = levels(prediction, schedule, t, t)
        return jnp.minimum(jnp.square(alpha), gamma * jnp.square(sigma))
    snr = jnp.square(
        jnp.asarray(schedule.sqrt_alphas_cumprod)[t] / jnp.asarray(schedule.sqrt_one_minus_alphas_cumprod)[t]
    )
    weights = jnp.minimum(snr, gamma)
    return weights if prediction == "x0" else weights / (snr + 1 if prediction == "v" else snr)
