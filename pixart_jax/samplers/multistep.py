"""Multistep samplers as a table of coefficients and one compiled loop.

Every such solver of the diffusion ODE or SDE, given its time grid, is linear in the state, in the last x_0 predictions
and in fresh noise, with coefficients known before the loop starts. They are computed in float64 by numpy. A corrector,
and a step that calls the model twice, are no more than further rows and columns.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError
from pixart_jax.samplers.steps import Carry, Correct, Denoiser, NoiseFn, Sampler, Stateful, faults


@dataclasses.dataclass(frozen=True, eq=False)
class MultistepTable:
    """One row for each call of the model, at timestep t, where x_t = alpha·x_0 + sigma·eps (or, in the place of eps,
    what else the model predicts); after it
    x ← from_x·x + Σ_k from_x0[k]·(x_0 as predicted k rows ago) + from_noise·noise.

    f64[R] each, `from_x0` f64[R, K], K ≥ 1. What the last row leaves is taken for the picture, also where a solver
    stops at the noise of timestep 0.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    from_x: np.ndarray
    from_x0: np.ndarray
    from_noise: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.t)

    def last_rows(self, count: int) -> MultistepTable:
        """The table of the last `count` rows alone, which knows no prediction of before them.

        The first prediction stands for those: a solver whose order is raised by it falls back to the order below.
        """
        rows = {name: value[self.num_rows - count :].copy() for name, value in self.rows().items()}
        from_x0 = rows["from_x0"]
        for row in range(min(count, from_x0.shape[1] - 1)):
            from_x0[row, row] += from_x0[row, row + 1 :].sum()
            from_x0[row, row + 1 :] = 0.0
        return MultistepTable(**rows)

    def rows(self) -> dict[str, np.ndarray]:
        """What there is of each row, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def first_order_table(t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray) -> MultistepTable:
    """x_next = alpha_next·x_0 + sigma_next·eps (Song et al. 2020, eq. 12), with eps in terms of x and x_0.

    Args: as those of `second_order_table`.
    """
    from_x = sigma[1:] / sigma[:-1]
    from_x0 = (alpha[1:] - from_x * alpha[:-1])[:, None]
    return MultistepTable(t, alpha[:-1], sigma[:-1], from_x, from_x0, np.zeros_like(from_x))


def second_order_table(
    t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, first_order_steps: set[int]
) -> MultistepTable:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022b, algorithm 2).

    Args:
      t: f64[S] model timesteps at which the model is evaluated.
      alpha, sigma: f64[S + 1] at those times and at the end; the last sigma may be 0.
      first_order_steps: steps that ignore the previous prediction; step 0 always does.
    """
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha) - np.log(sigma)
    step = np.diff(log_snr)
    gain = -alpha[1:] * np.expm1(-step)
    correction = np.zeros_like(gain)
    for i in range(1, len(gain)):
        if i not in first_order_steps:
            correction[i] = gain[i] * step[i] / (2 * step[i - 1])
    from_x0 = np.stack([gain + correction, -correction], axis=1)
    return MultistepTable(t, alpha[:-1], sigma[:-1], sigma[1:] / sigma[:-1], from_x0, np.zeros_like(gain))


def whole_timesteps(schedule: DiffusionSchedule, num_steps: int) -> np.ndarray:
    """diffusers' grid: f64[num_steps + 1], whole timesteps from the last one to 0.

    Raises:
      InputError: so many steps would have a timestep twice.
    """
    if num_steps >= schedule.num_steps:
        raise InputError(
            f"num_steps = {num_steps}: a grid of whole timesteps has at most {schedule.num_steps - 1} steps"
        )
    return np.linspace(0, schedule.num_steps - 1, num_steps + 1).round()[::-1]


def multistep_sampler(table: MultistepTable) -> Sampler:
    """The rows of a table as a solver."""
    stochastic = bool(table.from_noise.any())
    steps = np.arange(table.num_rows, dtype=np.int32)
    rows = table.rows() | {"next_t": np.append(table.t[1:], -1)}
    rows = {name: np.asarray(value, np.float32) for name, value in rows.items()} | {
        "step": steps,
        # Its noise is numbered behind that of all steps: none is used twice.
        "correction": steps + np.int32(table.num_rows if stochastic else 0),
    }
    begin = functools.partial(_begin, table.from_x0.shape[1] - 1)
    return Sampler(rows, _TAKE_STEP[stochastic], begin, float(table.t[0]))


def sample_multistep(
    denoise: Denoiser, x: jax.Array, table: MultistepTable, noise_fn: NoiseFn, correct: Correct | None = None
) -> tuple[jax.Array, jax.Array]:
    """Runs the table's rows from x f32[B, ...]; as `Sampler.run`."""
    return multistep_sampler(table).run(denoise, x, noise_fn, correct)


def _begin(num_past: int, x: jax.Array) -> Carry:
    return x, (jnp.zeros_like(x),) * num_past


def _take_step(model: Stateful, noise_fn: NoiseFn, correct: Correct | None, carry: Carry, row, *, stochastic: bool):
    x, past, state = carry
    (eps, _), state = model.call(x, jnp.full(x.shape[:1], row["t"]), state)
    predictions = ((x - row["sigma"] * eps) / row["alpha"], *past)
    x = row["from_x"] * x
    for lag, x0 in enumerate(predictions):
        x = x + row["from_x0"][lag] * x0
    if stochastic:
        x = x + row["from_noise"] * noise_fn(row["step"])
    values = [eps, x]
    if correct is not None:
        x = correct(x, row["next_t"], noise_fn(row["correction"]))
        values.append(x)
    return (x, predictions[:-1], state), predictions[0], faults(*values)


# One of each, so that solvers of a kind share a compiled step.
_TAKE_STEP = {stochastic: functools.partial(_take_step, stochastic=stochastic) for stochastic in (False, True)}
