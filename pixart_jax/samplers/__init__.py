"""Samplers by name: plain functions over a denoiser, which never import a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

from pixart_jax.diffusion.schedule import DiffusionSchedule, respace
from pixart_jax.errors import InputError
from pixart_jax.samplers.ddim import ddim_table
from pixart_jax.samplers.dpm_solver import diffusers_table, reference_table
from pixart_jax.samplers.iddpm import NoiseFn, sample_iddpm
from pixart_jax.samplers.multistep import Denoiser, sample_multistep

# (denoiser, x f32[B, ...], noise) -> x_0; deterministic samplers ignore the noise.
Sampler = Callable[[Denoiser, jax.Array, NoiseFn], jax.Array]

_TABLES = {
    "dpm-solver": reference_table,
    "dpm-solver-alpha": partial(reference_table, always_lower_final=False),
    "dpm-solver-diffusers": diffusers_table,
    "ddim": ddim_table,
}
SAMPLERS = (*_TABLES, "iddpm")


def build_sampler(name: str, schedule: DiffusionSchedule, num_steps: int) -> Sampler:
    """The named sampler with its coefficients computed; raises InputError for an unknown name or number of steps."""
    if name in _TABLES:
        table = _TABLES[name](schedule, num_steps)
        return lambda denoise, x, noise_fn: sample_multistep(denoise, x, table)
    if name == "iddpm":
        spaced = respace(schedule, num_steps)
        return lambda denoise, x, noise_fn: sample_iddpm(denoise, x, spaced, noise_fn)
    raise InputError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
