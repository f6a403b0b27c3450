"""Averages of the parameters whose length is chosen after training.

Source: Karras et al. 2023, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2),
arXiv:2312.02696, §3 and appendix C.

After step t the power-function average of exponent γ weighs the parameters of step k ≤ t by the integral of
(γ + 1)·τ^γ / t^(γ + 1) over (k - 1, k]. Its length is said relative to t, by σ_rel, the standard deviation of that
profile over t. Any other profile is fitted by a sum of those that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The longest length: γ = 0, the mean of all steps.
LONGEST = 1 / math.sqrt(12)
# Parts that a profile is cut into at most; of shorter runs each step is one.
_PARTS = 8192


def exponent(sigma_rel: float) -> float:
    """γ of a length: the largest root of (γ + 1) = σ²·(γ + 2)²·(γ + 3).

    Args:
      sigma_rel: in (0, LONGEST].
    """
    square = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def average_name(sigma_rel: float) -> str:
    """What an average is called in trees and files."""
    return f"sigma_rel_{sigma_rel:g}".replace(".", "_")


class AveragedState(NamedTuple):
    """Of `keeping_averages`.

    Attributes:
      step: i32[], steps done.
      optimizer: state of what makes the updates.
      averages: by `average_name`, f32 trees like what is averaged.
    """

    step: jax.Array
    optimizer: optax.OptState
    averages: dict[str, Any]


def keeping_averages(
    tx: optax.GradientTransformation,
    sigma_rels: Sequence[float],
    drawn: Callable[[Any, optax.OptState], Any],
) -> optax.GradientTransformation:
    """The same updates, and beside their state power-function averages of what they lead to.

    They take 4 bytes per parameter each, and lie where the parameters lie. An average is θ(1) after the first step; the
    parameters that a run starts from have no part in it.

    Args:
      drawn: (parameters, state of `tx`) -> what of them is averaged.
    """
    exponents = {average_name(sigma_rel): exponent(sigma_rel) for sigma_rel in sigma_rels}

    def init(params):
        state = tx.init(params)
        # Each a copy: a state is donated, and no two of its arrays may be one.
        averages = {name: jax.tree.map(jnp.copy, drawn(params, state)) for name in exponents}
        return AveragedState(jnp.zeros((), jnp.int32), state, averages)

    def update(grads, state, params=None):
        updates, inner = tx.update(grads, state.optimizer, params)
        step = state.step + 1
        after = drawn(optax.apply_updates(params, updates), inner)
        averages = {}
        for name, gamma in exponents.items():
            # 1 - β with β = (1 - 1/t)^(γ + 1), without the cancellation.
            rate = -jnp.expm1((gamma + 1) * jnp.log1p(-1.0 / step))
            averages[name] = jax.tree.map(lambda a, p, rate=rate: a + rate * (p - a), state.averages[name], after)
        return updates, AveragedState(step, inner, averages)

    return optax.GradientTransformation(init, update)


def averages_of(opt_state: optax.OptState) -> dict[str, Any]:
    """Those that a state of `keeping_averages` holds."""
    assert isinstance(opt_state, AveragedState)
    return opt_state.averages


class Fit(NamedTuple):
    """A profile as a sum of others.

    Attributes:
      coefficients: f64[number of profiles].
      residual: norm of what the sum lacks, over that of the profile.
      gain: norm of the coefficients: what independent errors of those that were kept are multiplied by.
    """

    coefficients: np.ndarray
    residual: float
    gain: float


def fit_profile(kept: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> Fit:
    """The least-squares fit of a power-function profile at a step by kept ones (appendix C.3).

    The paper's inner products are of continuous profiles. These are of what was averaged, steps of width 1, so that in
    a short run the fit is exact where there is an exact one; more than 8,192 steps are cut into as many parts.

    Args:
      kept: (step, σ_rel) of each.
      step: of the profile that is fitted; none of those kept may be of a later one.
    """
    edges = np.unique([*np.linspace(0, step, min(step, _PARTS) + 1).round(), *(at for at, _ in kept)])
    widths = np.sqrt(np.diff(edges))

    def profile(at: int, sigma: float) -> np.ndarray:
        # Its norm is that of the continuous profile's mean over each part.
        return np.diff(np.minimum(edges / at, 1.0) ** (exponent(sigma) + 1)) / widths

    basis, wanted = np.stack([profile(*one) for one in kept], axis=1), profile(step, sigma_rel)
    coefficients = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    residual = np.linalg.norm(basis @ coefficients - wanted) / np.linalg.norm(wanted)
    return Fit(coefficients, float(residual), float(np.linalg.norm(coefficients)))
