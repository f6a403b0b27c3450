"""Ancestral sampling with learned variance on a respaced process (Nichol & Dhariwal 2021, §4)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.samplers.multistep import Denoiser

# Step counter i32[] -> standard normal noise of x's shape.
NoiseFn = Callable[[jax.Array], jax.Array]


def per_sample_noise(keys: jax.Array, shape: tuple[int, ...]) -> NoiseFn:
    """Noise f32[B, *shape] of one key per sample, so that a sample's picture does not depend on its batch."""

    def noise(step):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)

    return noise


def sample_iddpm(denoise: Denoiser, x: jax.Array, schedule: DiffusionSchedule, noise_fn: NoiseFn) -> jax.Array:
    """Runs all steps of a (respaced) schedule from noise x f32[B, ...] to x_0. The model must predict the variance.

    x_0 is not clipped: latents have no bounds. The last step adds no noise.
    """
    indices = jnp.arange(schedule.num_steps)[::-1]
    timesteps = jnp.asarray(np.asarray(schedule.timesteps)[::-1].copy(), jnp.float32)

    def body(x, row):
        step, index, t = row
        eps, v = denoise(x, jnp.full(x.shape[:1], t))
        mean, log_variance = gaussian.p_mean_log_variance(schedule, x, jnp.full(x.shape[:1], index, jnp.int32), eps, v)
        noise = jnp.where(index > 0, noise_fn(step), 0.0)
        return mean + jnp.exp(0.5 * log_variance) * noise, None

    x, _ = jax.lax.scan(body, x, (jnp.arange(schedule.num_steps), indices, timesteps))
    return x
