"""DDIM (Song et al. 2020) without noise (η = 0)."""

from __future__ import annotations

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule, respace_ddim
from pixart_jax.samplers.multistep import MultistepTable


def ddim_table(schedule: DiffusionSchedule, num_steps: int) -> MultistepTable:
    """x_prev = √ᾱ_prev·x_0 + √(1-ᾱ_prev)·eps (eq. 12), ending at ᾱ = 1; eps is written in terms of x and x_0."""
    spaced = respace_ddim(schedule, num_steps)
    alphas_cumprod = np.append(spaced.alphas_cumprod[::-1], 1.0)
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod)
    from_x = sigma[1:] / sigma[:-1]
    t = spaced.timesteps[::-1].astype(np.float64)
    return MultistepTable(t, alpha[:-1], sigma[:-1], from_x, alpha[1:] - from_x * alpha[:-1], np.zeros_like(t), end=-1)
