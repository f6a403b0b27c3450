"""Ancestral sampling with learned variance on a respaced process (Nichol & Dhariwal 2021, §4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.samplers.steps import Correct, Denoiser, NoiseFn, faults, stateful


def per_sample_noise(keys: jax.Array, shape: tuple[int, ...]) -> NoiseFn:
    """Noise f32[B, *shape] of one key per sample, so that a sample's picture does not depend on its batch."""

    def noise(step):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)

    return noise


def sample_iddpm(
    denoise: Denoiser,
    x: jax.Array,
    schedule: DiffusionSchedule,
    noise_fn: NoiseFn,
    correct: Correct | None = None,
    *,
    num_steps: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the steps of a (respaced) schedule from x f32[B, ...]; as `Sampler.run`.

    The model must predict the variance.
    x_0 is not clipped: latents have no bounds. The last step adds no noise.

    Args:
      num_steps: only the last so many; None runs all.
    """
    count = schedule.num_steps if num_steps is None else num_steps
    indices = jnp.arange(count)[::-1]
    timesteps = np.asarray(schedule.timesteps)[:count][::-1]
    rows = (
        jnp.arange(count),
        indices,
        jnp.asarray(timesteps.copy(), jnp.float32),
        jnp.asarray(np.append(timesteps[1:], -1), jnp.float32),
    )

    model = stateful(denoise)

    def body(carry, row):
        (x, state), (step, index, t, next_t) = carry, row
        (eps, v), state = model.call(x, jnp.full(x.shape[:1], t), state)
        mean, log_variance = gaussian.p_mean_log_variance(schedule, x, jnp.full(x.shape[:1], index, jnp.int32), eps, v)
        noise = jnp.where(index > 0, noise_fn(step), 0.0)
        x = mean + jnp.exp(0.5 * log_variance) * noise
        values = [eps, x]
        if correct is not None:
            # Its noise is numbered behind that of all steps: none is used twice.
            x = correct(x, next_t, noise_fn(schedule.num_steps + step))
            values.append(x)
        return (x, state), faults(*values)

    (x, _), found = jax.lax.scan(body, (x, model.begin(x)), rows)
    return x, found
