"""Samplers by name: plain functions over a denoiser, which never import a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pixart_jax.diffusion.schedule import DiffusionSchedule, respace
from pixart_jax.errors import InputError
from pixart_jax.samplers.ddim import ddim_table
from pixart_jax.samplers.dpm_solver import diffusers_table, reference_table
from pixart_jax.samplers.iddpm import sample_iddpm
from pixart_jax.samplers.multistep import MultistepTable, sample_multistep
from pixart_jax.samplers.steps import Sampler

_TABLES: dict[str, Callable[[DiffusionSchedule, int], MultistepTable]] = {
    "dpm-solver": reference_table,
    "dpm-solver-alpha": partial(reference_table, always_lower_final=False),
    "dpm-solver-diffusers": diffusers_table,
    "ddim": ddim_table,
}
SAMPLERS = (*_TABLES, "iddpm")


def build_sampler(name: str, schedule: DiffusionSchedule, num_steps: int, *, start: float = 1.0) -> Sampler:
    """The named sampler with its coefficients computed.

    Args:
      num_steps: of the whole way from noise.
      start: which share of it is gone, in (0, 1]: below 1 only the last ⌊start·num_steps⌋ steps are, from an x at
        `Sampler.first_t`, as with diffusers' `strength`.

    Raises:
      InputError: unknown name, or a number of steps or a start that it cannot take.
    """
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
    if not 0 < start <= 1:
        raise InputError(f"start = {start:g}: must lie in (0, 1]; 1 draws from pure noise")
    count = int(num_steps * start)
    if num_steps >= 1 > count:
        raise InputError(f"start = {start:g}: leaves none of {num_steps} steps; set it to at least 1/{num_steps}")
    if name == "iddpm":
        spaced = respace(schedule, num_steps)
        return Sampler(
            lambda denoise, x, noise_fn, correct: sample_iddpm(denoise, x, spaced, noise_fn, correct, num_steps=count),
            float(spaced.timesteps[count - 1]),
        )
    table = _TABLES[name](schedule, num_steps)
    if count < num_steps:
        table = table.last_steps(count)
    return Sampler(
        lambda denoise, x, noise_fn, correct: sample_multistep(denoise, x, table, noise_fn, correct), float(table.t[0])
    )
