"""Samplers of rectified flow, on the time grids of diffusers' schedulers; models predict eps - x_0, see
`diffusion.flow`."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixart_jax.diffusion.flow import FLOW_STEPS, FlowSchedule, shifted
from pixart_jax.errors import InputError
from pixart_jax.samplers.euler import in_two_calls
from pixart_jax.samplers.multistep import MultistepTable, first_order_table, second_order_table


def euler_table(schedule: FlowSchedule, num_steps: int) -> MultistepTable:
    """diffusers' `FlowMatchEulerDiscreteScheduler`."""
    sigma = _sigmas(schedule, num_steps)
    return _of_flow(first_order_table(FLOW_STEPS * sigma[:-1], 1 - sigma, sigma))


def heun_table(schedule: FlowSchedule, num_steps: int) -> MultistepTable:
    """diffusers' `FlowMatchHeunDiscreteScheduler`: two rows for each step but the last, which is Euler's."""
    sigma = _sigmas(schedule, num_steps)
    euler = euler_table(schedule, num_steps)
    return in_two_calls(euler, (sigma[:-2] - sigma[1:-1]) / (2 * sigma[1:-1]))


def dpm_solver_table(schedule: FlowSchedule, num_steps: int) -> MultistepTable:
    """diffusers' `DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")`.

    From σ = 0.999, shifted, to the picture; the model is told whole timesteps.
    """
    _check(num_steps)
    # In its order of rounding: the timestep is cut, not rounded.
    unshifted = 1.0 - np.linspace(1, 1 / FLOW_STEPS, num_steps + 1)
    sigma = np.append(np.flip(shifted(unshifted, schedule.shift))[:-1], 0.0)
    t = (sigma[:-1] * FLOW_STEPS).astype(np.int64).astype(np.float64)
    return _of_flow(second_order_table(t, 1 - sigma, sigma, {num_steps - 1}))


def _of_flow(table: MultistepTable) -> MultistepTable:
    """The table over what the model predicts: x_σ is x_0 + σ·(eps - x_0)."""
    return dataclasses.replace(table, alpha=np.ones_like(table.alpha))


def _sigmas(schedule: FlowSchedule, num_steps: int) -> np.ndarray:
    """f64[S + 1] from 1 to 0; diffusers shifts the last but one twice."""
    _check(num_steps)
    least = shifted(1 / FLOW_STEPS, schedule.shift)
    return np.append(shifted(np.linspace(1.0, least, num_steps), schedule.shift), 0.0)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise InputError(f"num_steps = {num_steps}: samplers of rectified flow take at least 1 step")
