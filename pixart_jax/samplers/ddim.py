"""DDIM (Song et al. 2020) without noise (η = 0)."""

from __future__ import annotations

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule, respace_ddim
from pixart_jax.samplers.multistep import MultistepTable, first_order_table


def ddim_table(schedule: DiffusionSchedule, num_steps: int) -> MultistepTable:
    """Every (T // num_steps)-th step from 0, ending at ᾱ = 1."""
    spaced = respace_ddim(schedule, num_steps)
    alphas_cumprod = np.append(spaced.alphas_cumprod[::-1], 1.0)
    t = spaced.timesteps[::-1].astype(np.float64)
    return first_order_table(t, np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod))
