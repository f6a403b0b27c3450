"""Noise schedules: betas and everything derived from them, computed in float64 and stored in float32."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixart_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionSchedule:
    """Tables of a discrete diffusion process of T steps, each f32[T] unless said otherwise.

    Attributes:
      betas, alphas_cumprod: float64, for solvers that derive their own coefficients.
      timesteps: i64[T], the model timestep of each step (the identity unless respaced).
      posterior_*: q(x_{t-1} | x_t, x_0) = N(coef_x0·x_0 + coef_xt·x_t, exp(log_variance)) (Ho et al. 2020, eq. 7);
        entry 0 of the log-variance repeats entry 1, because the true one is -inf.
    """

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    timesteps: np.ndarray
    log_betas: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_log_variance: np.ndarray
    posterior_coef_x0: np.ndarray
    posterior_coef_xt: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.betas)


def schedule_from_betas(betas: np.ndarray, timesteps: np.ndarray | None = None) -> DiffusionSchedule:
    """Derives all tables from betas f64[T]."""
    betas = np.asarray(betas, np.float64)
    alphas_cumprod = np.cumprod(1.0 - betas)
    previous = np.append(1.0, alphas_cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
    clipped = np.append(variance[1] if len(variance) > 1 else betas[0], variance[1:])
    f32 = {
        "log_betas": np.log(betas),
        "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1.0),
        "posterior_log_variance": np.log(clipped),
        "posterior_coef_x0": betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
        "posterior_coef_xt": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
    }
    return DiffusionSchedule(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        timesteps=np.arange(len(betas)) if timesteps is None else np.asarray(timesteps),
        **{name: table.astype(np.float32) for name, table in f32.items()},
    )


def linear_schedule(num_steps: int = 1000) -> DiffusionSchedule:
    """Betas linear from 1e-4 to 0.02 at 1000 steps, both ends scaled by 1000/num_steps otherwise."""
    scale = 1000 / num_steps
    return schedule_from_betas(np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64))


def respace(schedule: DiffusionSchedule, num_steps: int) -> DiffusionSchedule:
    """Keeps `num_steps` evenly spaced steps, first and last included, and recomputes the betas (Nichol & Dhariwal
    2021, §4).

    The model still sees the original timesteps (`timesteps`).
    """
    total = schedule.num_steps
    if not 1 <= num_steps <= total:
        raise InputError(f"num_steps = {num_steps}: an ancestral sampler takes 1 to {total} steps")
    # Accumulated, and rounded half to even, as the reference does it: a closed form picks other steps.
    stride = 1.0 if num_steps == 1 else (total - 1) / (num_steps - 1)
    position, kept = 0.0, []
    for _ in range(num_steps):
        kept.append(round(position))
        position += stride
    return _keep(schedule, np.array(kept))


def respace_ddim(schedule: DiffusionSchedule, num_steps: int) -> DiffusionSchedule:
    """Keeps every (T // num_steps)-th step from 0, the spacing of the DDIM paper (Song et al. 2020)."""
    total = schedule.num_steps
    if not 1 <= num_steps <= total:
        raise InputError(f"num_steps = {num_steps}: DDIM takes 1 to {total} steps")
    return _keep(schedule, np.arange(num_steps) * (total // num_steps))


def _keep(schedule: DiffusionSchedule, kept: np.ndarray) -> DiffusionSchedule:
    alphas_cumprod = schedule.alphas_cumprod[kept]
    betas = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return schedule_from_betas(betas, schedule.timesteps[kept])
