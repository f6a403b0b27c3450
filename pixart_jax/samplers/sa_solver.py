"""SA-Solver (Xue et al. 2023) of order 2 with its corrector, which adds noise along a part of the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError
from pixart_jax.samplers.dpm_solver import reference_grid
from pixart_jax.samplers.multistep import MultistepTable, whole_timesteps


def reference_table(schedule: DiffusionSchedule, num_steps: int, *, eta: float = 1.0) -> MultistepTable:
    """The PixArt repositories' sampler on DPM-Solver's time grid.

    Args:
      eta: τ of the steps that arrive at a time in [0.2, 0.8], the last step apart; that of the others is 0.
    """
    _check(num_steps)
    time, t, alpha, sigma = reference_grid(schedule, num_steps)
    arrival = time[1:]
    tau = np.where((arrival >= 0.2) & (arrival <= 0.8), eta, 0.0)
    tau[-1] = 0.0
    return _table(t, alpha, sigma, tau)


def diffusers_table(
    schedule: DiffusionSchedule,
    num_steps: int,
    *,
    tau: Callable[[np.ndarray], np.ndarray] = lambda t: np.where((t >= 200) & (t <= 800), 1.0, 0.0),
) -> MultistepTable:
    """diffusers' `SASolverScheduler`: integer timesteps, ends at the noise of timestep 0.

    Args:
      tau: of the timesteps f64[S] that the steps leave, f64[S].
    """
    _check(num_steps)
    t = whole_timesteps(schedule, num_steps)
    alphas_cumprod = schedule.alphas_cumprod[t.astype(int)]
    return _table(t[:-1], np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod), np.asarray(tau(t[:-1]), np.float64))


def _table(t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, tau: np.ndarray) -> MultistepTable:
    """Eq. 14 and 17 of the paper, with data prediction, as one linear step.

    The corrector of step k starts where its predictor did, with the same noise. So what it changes is a sum over
    predictions alone, and the step after it is linear in the predictor's x.

    Args:
      t, tau: f64[S].
      alpha, sigma: f64[S + 1].
    """
    count = len(t)
    log_snr = np.log(alpha) - np.log(sigma)
    step = np.diff(log_snr)
    kappa = 1.0 + tau**2
    from_x = np.exp(-(tau**2) * step) * sigma[1:] / sigma[:-1]
    # Of x_0 at the step's own point and at the one before it; of the corrector at the point it arrives at and its own.
    predict, correct = np.zeros((count, 2)), np.zeros((count, 2))
    for i in range(count):
        h, gain = step[i], kappa[i] * alpha[i + 1]
        # Integrals over the step of exp(-κu) and u·exp(-κu), u from its end backwards.
        constant = -np.expm1(-kappa[i] * h) / kappa[i]
        linear = (constant - h * np.exp(-kappa[i] * h)) / kappa[i]
        # What the authors add in few steps: it does not change the order.
        extra = h**2 / 2 - (h - constant) / kappa[i]
        if 0 < i < count - 1:
            before = step[i - 1]
            second = (linear - h * constant - extra) / before
            predict[i] = gain * (constant - second), gain * second
        else:
            predict[i, 0] = gain * constant
        arrived = (h * constant - linear + extra) / h
        correct[i] = gain * arrived, gain * (constant - arrived)
    from_x0 = np.pad(predict, ((0, 0), (0, 1)))
    change = np.pad(correct, ((0, 0), (0, 1))) - np.pad(predict, ((0, 0), (1, 0)))
    from_x0[1:] += from_x[1:, None] * change[:-1]
    noise = sigma[1:] * np.sqrt(-np.expm1(-2 * tau**2 * step))
    return MultistepTable(t, alpha[:-1], sigma[:-1], from_x, from_x0, noise)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise InputError(f"num_steps = {num_steps}: SA-Solver takes at least 1 step")
