"""Deterministic multistep samplers as a table of coefficients and one compiled loop.

Every such solver of the diffusion ODE, given its time grid, is linear in the state and in the last two x_0
predictions, with coefficients known before the loop starts. They are computed in float64 by numpy.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.samplers.steps import Correct, Denoiser, NoiseFn, faults


@dataclasses.dataclass(frozen=True, eq=False)
class MultistepTable:
    """Per step, each f64[S]: the model timestep t, x_t = alpha·x_0 + sigma·eps, and x ← from_x·x + from_x0·x_0 +
    from_last·(last x_0). `end` is the timestep that the last step arrives at; -1 is the clean picture."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    from_x: np.ndarray
    from_x0: np.ndarray
    from_last: np.ndarray
    end: float

    @property
    def num_steps(self) -> int:
        return len(self.t)

    def last_steps(self, count: int) -> MultistepTable:
        """The table of the last `count` steps alone, of which the first knows no prediction before it."""
        rows = {name: value[self.num_steps - count :].copy() for name, value in self.rows().items()}
        rows["from_x0"][0] += rows["from_last"][0]
        rows["from_last"][0] = 0.0
        return MultistepTable(**rows, end=self.end)

    def rows(self) -> dict[str, np.ndarray]:
        """What there is of each step, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "end"}


def second_order_table(
    t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, first_order_steps: set[int], *, end: float
) -> MultistepTable:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022b, algorithm 2).

    Args:
      t: f64[S] model timesteps at which the model is evaluated.
      alpha, sigma: f64[S + 1] at those times and at the end; the last sigma may be 0.
      first_order_steps: steps that ignore the previous prediction; step 0 always does.
      end: the timestep of the last alpha and sigma.
    """
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha) - np.log(sigma)
    step = np.diff(log_snr)
    gain = -alpha[1:] * np.expm1(-step)
    correction = np.zeros_like(gain)
    for i in range(1, len(gain)):
        if i not in first_order_steps:
            correction[i] = gain[i] * step[i] / (2 * step[i - 1])
    return MultistepTable(t, alpha[:-1], sigma[:-1], sigma[1:] / sigma[:-1], gain + correction, -correction, end)


def sample_multistep(
    denoise: Denoiser, x: jax.Array, table: MultistepTable, noise_fn: NoiseFn, correct: Correct | None = None
) -> tuple[jax.Array, jax.Array]:
    """Runs the table's steps from x f32[B, ...] as one loop whose body is compiled once; as `Sampler.run`."""
    steps = table.rows() | {"step": np.arange(table.num_steps), "next_t": np.append(table.t[1:], table.end)}
    rows = {name: jnp.asarray(value, jnp.int32 if name == "step" else jnp.float32) for name, value in steps.items()}

    def body(carry, row):
        x, last = carry
        eps = denoise(x, jnp.full(x.shape[:1], row["t"]))[0]
        x0 = (x - row["sigma"] * eps) / row["alpha"]
        x = row["from_x"] * x + row["from_x0"] * x0 + row["from_last"] * last
        values = [eps, x]
        if correct is not None:
            x = correct(x, row["next_t"], noise_fn(row["step"]))
            values.append(x)
        return (x, x0), faults(*values)

    (x, _), found = jax.lax.scan(body, (x, jnp.zeros_like(x)), rows)
    return x, found
