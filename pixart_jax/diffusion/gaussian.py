"""The Gaussian diffusion process with learned-range variance (Ho et al. 2020; Nichol & Dhariwal 2021).

All functions are element-wise in x, so they hold for latents and for tokens alike. x, noise, eps, v: f32[B, ...];
t: i32[B], an index into the schedule; everything returned is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion.flow import FLOW_STEPS, FlowSchedule
from pixart_jax.diffusion.schedule import DiffusionSchedule


def at(table: np.ndarray, t, x):
    """table[t] with axes added so that it broadcasts against x [B, ...]."""
    return jnp.asarray(table)[t].reshape(-1, *(1,) * (x.ndim - 1))


def q_sample(schedule: DiffusionSchedule, x0, t, noise):
    """x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·noise (Ho et al. 2020, eq. 4)."""
    return at(schedule.sqrt_alphas_cumprod, t, x0) * x0 + at(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * noise


def noise_level(schedule: DiffusionSchedule | FlowSchedule, t) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of x_t = alpha·x_0 + sigma·eps, at any timesteps t f32[...] in [-1, T-1]; x_0 itself is at -1.

    Between two steps log α is linear, as DPM-Solver's reference code has it. Of rectified flow, t lies in [0, 1000].
    """
    if isinstance(schedule, FlowSchedule):
        sigma = jnp.maximum(jnp.asarray(t, jnp.float32), 0.0) / FLOW_STEPS
        return 1 - sigma, sigma
    log_alpha = 0.5 * np.log(np.append(1.0, schedule.alphas_cumprod))
    log_alpha = jnp.interp(jnp.asarray(t, jnp.float32), np.arange(-1, schedule.num_steps), log_alpha)
    return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))


def predict_x0(schedule: DiffusionSchedule, x_t, t, eps):
    """The x_0 that x_t and the noise eps imply; not clipped."""
    return at(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t - at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * eps


def q_posterior(schedule: DiffusionSchedule, x0, x_t, t):
    """Mean and log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6-7)."""
    mean = at(schedule.posterior_coef_x0, t, x_t) * x0 + at(schedule.posterior_coef_xt, t, x_t) * x_t
    return mean, at(schedule.posterior_log_variance, t, x_t)


def p_mean_log_variance(schedule: DiffusionSchedule, x_t, t, eps, v):
    """Mean and log-variance of p(x_{t-1} | x_t), the latter interpolated by v (Nichol & Dhariwal 2021, eq. 15).

    v in [-1, 1] spans [log β̃_t, log β_t] and is not clamped.
    """
    mean, low = q_posterior(schedule, predict_x0(schedule, x_t, t, eps), x_t, t)
    high = at(schedule.log_betas, t, x_t)
    fraction = (v + 1) / 2
    return mean, fraction * high + (1 - fraction) * low


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N1 ‖ N2) in nats, element-wise."""
    return 0.5 * (
        -1.0
        + log_variance2
        - log_variance1
        + jnp.exp(log_variance1 - log_variance2)
        + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    )


def discretized_gaussian_log_likelihood(x, mean, log_scale):
    """Log-probability in nats of x under a Gaussian cut into bins of half-width 1/255, open at ±0.999, element-wise."""

    def cdf(z):
        return 0.5 * (1.0 + jnp.tanh(np.float32(np.sqrt(2.0 / np.pi)) * (z + 0.044715 * z**3)))

    inv_scale = jnp.exp(-log_scale)
    upper = cdf(inv_scale * (x - mean + 1.0 / 255.0))
    lower = cdf(inv_scale * (x - mean - 1.0 / 255.0))
    probability = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1.0 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))


def vlb_bits(schedule: DiffusionSchedule, x0, x_t, t, eps, v):
    """The variational bound's term of step t in bits, element-wise.

    The KL between the true and the predicted posterior; at t = 0 the negative log-likelihood of x_0. Only the
    variance learns from it: eps carries no gradient (Nichol & Dhariwal 2021, §3.1).
    """
    true_mean, true_log_variance = q_posterior(schedule, x0, x_t, t)
    mean, log_variance = p_mean_log_variance(schedule, x_t, t, jax.lax.stop_gradient(eps), v)
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
    nll = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    first = (t == 0).reshape(-1, *(1,) * (x0.ndim - 1))
    return jnp.where(first, nll, kl) / np.float32(np.log(2.0))
