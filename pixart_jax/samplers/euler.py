"""Euler's and Heun's methods over the ratio of noise to signal (Karras et al. 2022, algorithm 1), on the time grid of
diffusers' schedulers of these names."""

from __future__ import annotations

import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError
from pixart_jax.samplers.multistep import MultistepTable, first_order_table


def euler_table(schedule: DiffusionSchedule, num_steps: int) -> MultistepTable:
    """diffusers' `EulerDiscreteScheduler` with PixArt's betas: fractional timesteps from T - 1 to 0, then the picture.

    One step goes from T - 1 to the picture; diffusers takes it at 0, where nothing is left to draw.
    """
    t, ratio = _grid(schedule, num_steps)
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    return first_order_table(t, alpha, ratio * alpha)


def heun_table(schedule: DiffusionSchedule, num_steps: int) -> MultistepTable:
    """diffusers' `HeunDiscreteScheduler` with PixArt's betas: two rows for each step but the last, which is Euler's.

    Euler's step from ratio s to s' leaves x' = x_0 + (x - x_0)·s'/s, over alpha. The second call of the model, there,
    gives x_0'; the mean of both slopes then is x' + (x_0' - x_0)·(s - s')/(2s').
    """
    _, ratio = _grid(schedule, num_steps)
    euler = euler_table(schedule, num_steps)
    return in_two_calls(euler, euler.alpha[1:] * (ratio[:-2] - ratio[1:-1]) / (2 * ratio[1:-1]))


def in_two_calls(euler: MultistepTable, half: np.ndarray) -> MultistepTable:
    """Euler's table with Heun's second row after each but the last.

    Args:
      half: f64[S - 1], what the difference of the two predictions of x_0 counts there.
    """
    # Of a second row: where the row before it has arrived, it moves by the difference of the two predictions alone.
    second = np.stack([half, -half], axis=1)
    first = np.pad(euler.from_x0, ((0, 0), (0, 1)))
    rows = np.arange(heun_rows(euler.num_rows))
    point = (rows + 1) // 2  # of the grid, at which the model is called
    is_first = rows % 2 == 0
    return MultistepTable(
        euler.t[point],
        euler.alpha[point],
        euler.sigma[point],
        np.where(is_first, euler.from_x[point], 1.0),
        np.where(is_first[:, None], first[point], np.pad(second, ((1, 0), (0, 0)))[point]),
        np.zeros(len(rows)),
    )


def heun_rows(num_steps: int) -> int:
    """Of so many last steps of `heun_table`."""
    return 2 * num_steps - 1


def _grid(schedule: DiffusionSchedule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps f64[S], and sigma/alpha f64[S + 1] there and at the picture; linear between discrete steps."""
    if num_steps < 1:
        raise InputError(f"num_steps = {num_steps}: Euler's and Heun's methods take at least 1 step")
    last = schedule.num_steps - 1
    t = np.linspace(last, 0, num_steps)
    ratio = np.sqrt((1.0 - schedule.alphas_cumprod) / schedule.alphas_cumprod)
    return t, np.append(np.interp(t, np.arange(last + 1), ratio), 0.0)
