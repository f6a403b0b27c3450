"""Samplers of models that were distilled to draw in few steps: latent consistency models (Luo et al. 2023) and
distribution matching distillation (Yin et al. 2023)."""

from __future__ import annotations

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError
from pixart_jax.samplers.multistep import MultistepTable

# Steps of the solver that a consistency model was distilled with; it knows no timesteps but theirs.
LCM_STEPS = 50
# σ_data², and what timesteps are multiplied by.
_DATA_VARIANCE, _TIMESTEP_SCALE = 0.25, 10.0

# Where PixArt's one-step student takes its noise to be (PixArt-Σ, supplement).
DMD_TIMESTEP = 400


def boundary_scalings(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c_skip and c_out f64[...] of a consistency model c_skip·x + c_out·x_0 at timesteps t (Luo et al. 2023, eq. 9)."""
    scaled = (_TIMESTEP_SCALE * np.asarray(t, np.float64)) ** 2
    return _DATA_VARIANCE / (scaled + _DATA_VARIANCE), np.sqrt(scaled / (scaled + _DATA_VARIANCE))


def lcm_timesteps(schedule: DiffusionSchedule, num_steps: int, start: float, *, diffusers: bool) -> np.ndarray:
    """Timesteps i64[num_steps], falling.

    Args:
      start: below 1, all steps are taken from the last ⌊50·start⌋ of distillation, as with diffusers' `strength`.
      diffusers: its current scheduler's, whose 4 steps are 999, 759, 499, 259; else the repositories', whose are 999,
        759, 519, 279.
    """
    known = int(LCM_STEPS * start)
    if not 1 <= num_steps <= known:
        raise InputError(
            f"num_steps = {num_steps}: a consistency model takes 1 to {LCM_STEPS} steps"
            + (f", from start = {start:g} at most {known}; set start to at least {num_steps}/{LCM_STEPS}" * (start < 1))
        )
    origin = (np.arange(known, 0, -1) * (schedule.num_steps // LCM_STEPS)) - 1
    if diffusers:
        return origin[np.floor(np.linspace(0, known, num_steps, endpoint=False)).astype(int)]
    return origin[:: known // num_steps][:num_steps]


def lcm_table(
    schedule: DiffusionSchedule, num_steps: int, start: float = 1.0, *, diffusers: bool = False
) -> MultistepTable:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): to the picture, and back to the next noise level.

    The last step adds no noise. Args are those of `lcm_timesteps`.
    """
    t = lcm_timesteps(schedule, num_steps, start, diffusers=diffusers)
    alphas_cumprod = schedule.alphas_cumprod[t]
    arrival = np.append(alphas_cumprod[1:], 1.0)
    skip, out = boundary_scalings(t)
    alpha = np.sqrt(arrival)
    return MultistepTable(
        t.astype(np.float64),
        np.sqrt(alphas_cumprod),
        np.sqrt(1.0 - alphas_cumprod),
        alpha * skip,
        (alpha * out)[:, None],
        np.sqrt(1.0 - arrival),
    )


def dmd_table(schedule: DiffusionSchedule, num_steps: int = 1, *, t: int = DMD_TIMESTEP) -> MultistepTable:
    """One step: x_0 of pure noise that is taken for x_t; not clipped."""
    if num_steps != 1:
        raise InputError(f"num_steps = {num_steps}: dmd draws in 1 step, at timestep {t}; set it to 1")
    alphas_cumprod = schedule.alphas_cumprod[[t]]
    zero = np.zeros(1)
    return MultistepTable(
        np.array([t], np.float64),
        np.sqrt(alphas_cumprod),
        np.sqrt(1.0 - alphas_cumprod),
        zero,
        np.ones((1, 1)),
        zero,
    )
