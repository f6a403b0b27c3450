"""The golden case `few_step_samplers` and diffusers' schedulers, run beside ours over the same denoiser and noise."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from golden_cases import load_arrays, load_config

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide
from pixart_jax.samplers.multistep import MultistepTable, sample_multistep

SCHEDULE = linear_schedule()
CASE = "extras/few_step_samplers"
# What makes diffusers' schedulers PixArt's.
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def toy(x, t, conditions):
    cond = conditions["cond"].mean(axis=(1, 2))[:, :, None, None]
    return 0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1, 1) * cond, None


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def run_table(table: MultistepTable, *, guided: bool, first_noise: int = 0):
    """The end state of a table from the case's z; row i draws noise number first_noise + i."""
    case, scale = load_arrays(CASE), load_config(CASE)["guidance_scale"]
    null = {"cond": case["in/uncond"]} if guided else None
    denoise = guide(toy, {"cond": case["in/cond"]}, null, scale)
    noises = jnp.asarray(case["in/noises"])[first_noise:]
    return jax.jit(lambda z: sample_multistep(denoise, z, table, lambda i: noises[i])[0])(case["in/z"])


def compare_with_diffusers(name: str, scheduler, num_steps: int, strength: float = 1.0):
    """Relative error of our sampler's end state against a diffusers scheduler's; both see the same noise."""
    case = load_arrays(CASE)
    z, noises = torch.from_numpy(case["in/z"]), iter(torch.from_numpy(case["in/noises"]))
    if name.startswith("lcm"):
        scheduler.set_timesteps(num_steps, strength=strength)
        timesteps = scheduler.timesteps
    else:
        scheduler.set_timesteps(num_steps)
        begin = (num_steps - int(num_steps * strength)) * scheduler.order
        timesteps = scheduler.timesteps[begin:]
        if begin:
            scheduler.set_begin_index(begin)
    x = z * scheduler.init_noise_sigma if strength == 1 else scheduler.add_noise(0 * z, z, timesteps[:1].repeat(2))
    seen = []
    with _same_noise(scheduler, noises):
        for t in timesteps:
            model_input = scheduler.scale_model_input(x, t)
            seen.append(float(t))
            x = scheduler.step(0.6 * model_input + 0.2 * torch.sin(t / 150), t, x).prev_sample

    sampler = build_sampler(name, SCHEDULE, num_steps, start=strength)
    assert abs(sampler.first_t - seen[0]) < 1e-3
    # Where noise is all there is, some schedulers make it a little smaller than ours, by 2e-5.
    level = np.sqrt(1 - np.interp(sampler.first_t, np.arange(1000), SCHEDULE.alphas_cumprod)) if strength < 1 else 1.0
    ours = jnp.asarray(case["in/noises"])

    def denoise(x, t):
        return 0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1, 1), None

    return relative_error(
        sampler(denoise, jnp.asarray(level * case["in/z"], jnp.float32), lambda i: ours[i]), x.numpy()
    )


def _same_noise(scheduler, noises):
    module = type(scheduler).__module__
    if not hasattr(__import__(module, fromlist=["randn_tensor"]), "randn_tensor"):
        return contextlib.nullcontext()
    return mock.patch(f"{module}.randn_tensor", lambda shape, **_: next(noises))
