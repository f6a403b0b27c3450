"""DPM-Solver++(2M) (Lu et al. 2022b) on the two time grids that PixArt users know."""

from __future__ import annotations

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError
from pixart_jax.samplers.multistep import MultistepTable, second_order_table, whole_timesteps


def reference_table(schedule: DiffusionSchedule, num_steps: int, *, always_lower_final: bool = True) -> MultistepTable:
    """The PixArt repositories' grid: times evenly spaced on (0, 1], fractional model timesteps, ends at t = 1/T.

    Args:
      always_lower_final: True is Σ's solver: the last step is first-order. False is α's: only below 10 steps.
    """
    _, t, alpha, sigma = reference_grid(schedule, num_steps)
    lowered = {num_steps - 1} if always_lower_final or num_steps < 10 else set()
    return second_order_table(t, alpha, sigma, lowered)


def reference_grid(
    schedule: DiffusionSchedule, num_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times f64[S + 1], evenly spaced from 1 to 1/T; the model's timesteps f64[S] at all but the last; alpha and sigma
    f64[S + 1] at all."""
    _check(num_steps)
    total = schedule.num_steps
    time = np.linspace(1.0, 1.0 / total, num_steps + 1)
    # The noise schedule between the discrete steps is linear in log α.
    log_alpha = np.interp(time, np.arange(1, total + 1) / total, 0.5 * np.log(schedule.alphas_cumprod))
    return time, (time[:-1] - 1.0 / total) * total, np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))


def diffusers_table(schedule: DiffusionSchedule, num_steps: int) -> MultistepTable:
    """The grid of diffusers' `DPMSolverMultistepScheduler()` as shipped with PixArt: integer timesteps, ends at sigma
    = 0."""
    _check(num_steps)
    t = whole_timesteps(schedule, num_steps)[:-1]
    alphas_cumprod = np.append(schedule.alphas_cumprod[t.astype(int)], 1.0)
    return second_order_table(t, np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod), {num_steps - 1})


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise InputError(f"num_steps = {num_steps}: DPM-Solver takes at least 1 step")
