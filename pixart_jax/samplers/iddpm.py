"""Ancestral sampling with learned variance on a respaced process (Nichol & Dhariwal 2021, §4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule, linear_schedule
from pixart_jax.samplers.steps import Carry, Correct, Denoiser, NoiseFn, Sampler, Stateful, faults

# What a step needs of a schedule's tables.
_TABLES = (
    "log_betas", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_log_variance",
    "posterior_coef_x0", "posterior_coef_xt",
)  # fmt: skip
_ONE_STEP = linear_schedule(1)


def per_sample_noise(keys: jax.Array, shape: tuple[int, ...]) -> NoiseFn:
    """Noise f32[B, *shape] of one key per sample, so that a sample's picture does not depend on its batch."""

    def noise(step):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)

    return noise


def iddpm_sampler(schedule: DiffusionSchedule, num_steps: int | None = None) -> Sampler:
    """The steps of a (respaced) schedule; the model must predict the variance.

    x_0 is not clipped: latents have no bounds. The last step adds no noise.

    Args:
      num_steps: only the last so many; None takes all.
    """
    count = schedule.num_steps if num_steps is None else num_steps
    timesteps = np.asarray(schedule.timesteps)[:count][::-1]
    steps = np.arange(count, dtype=np.int32)
    rows = {name: getattr(schedule, name)[:count][::-1] for name in _TABLES} | {
        "step": steps,
        # Its noise is numbered behind that of all steps: none is used twice.
        "correction": steps + np.int32(schedule.num_steps),
        "index": steps[::-1],
        "t": timesteps.astype(np.float32),
        "next_t": np.append(timesteps[1:], -1).astype(np.float32),
    }
    return Sampler(rows, _take_step, lambda x: (x,), float(timesteps[0]))


def sample_iddpm(
    denoise: Denoiser,
    x: jax.Array,
    schedule: DiffusionSchedule,
    noise_fn: NoiseFn,
    correct: Correct | None = None,
    *,
    num_steps: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs `iddpm_sampler` from x f32[B, ...]; as `Sampler.run`."""
    return iddpm_sampler(schedule, num_steps).run(denoise, x, noise_fn, correct)


def _take_step(model: Stateful, noise_fn: NoiseFn, correct: Correct | None, carry: Carry, row):
    x, state = carry
    (eps, v), state = model.call(x, jnp.full(x.shape[:1], row["t"]), state)
    # The step's own numbers, as the tables of a schedule of one step.
    schedule = dataclasses.replace(_ONE_STEP, **{name: row[name][None] for name in _TABLES})
    first = jnp.zeros(x.shape[:1], jnp.int32)
    x0 = gaussian.predict_x0(schedule, x, first, eps)
    mean, log_variance = gaussian.p_mean_log_variance(schedule, x, first, eps, v)
    noise = jnp.where(row["index"] > 0, noise_fn(row["step"]), 0.0)
    x = mean + jnp.exp(0.5 * log_variance) * noise
    values = [eps, x]
    if correct is not None:
        x = correct(x, row["next_t"], noise_fn(row["correction"]))
        values.append(x)
    return (x, state), x0, faults(*values)
