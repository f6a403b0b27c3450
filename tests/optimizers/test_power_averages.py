"""Averages whose length is chosen afterwards: what is kept, and what is made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixart_jax.optimizers.power_averages import (
    LONGEST,
    average_name,
    averages_of,
    exponent,
    fit_profile,
    keeping_averages,
)

STEPS, LENGTHS = 64, (0.05, 0.1, 0.07)


@pytest.mark.parametrize("sigma_rel,gamma", [(0.05, 16.97), (0.1, 6.94), (LONGEST, 0.0)])
def test_exponents_are_the_paper_s(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=5e-3)


@pytest.fixture(scope="module")
def walk():
    """({(step, length): average} of a random walk of eight numbers, the walk)."""
    tx = keeping_averages(optax.sgd(1.0), LENGTHS, lambda params, _: params)
    steps = np.random.default_rng(0).normal(size=(STEPS, 8)).astype(np.float32)
    params = {"w": jnp.zeros(8)}

    def body(carry, step):
        params, state = carry
        updates, state = tx.update({"w": step}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["w"], averages_of(state))

    _, (way, averages) = jax.lax.scan(body, (params, tx.init(params)), steps)
    found = {(k + 1, s): np.asarray(averages[average_name(s)]["w"][k]) for k in range(STEPS) for s in LENGTHS}
    return found, np.asarray(way)


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_an_average_has_the_profile_that_is_meant(walk, sigma_rel):
    averages, way = walk
    edges = (np.arange(STEPS + 1) / STEPS) ** (exponent(sigma_rel) + 1)
    np.testing.assert_allclose(averages[STEPS, sigma_rel], np.diff(edges) @ way, rtol=1e-5, atol=1e-5)


def test_a_third_is_made_of_two(walk):
    """To 1e-6 of its size, of snapshots at every other step; fewer say how much they lack."""
    averages, _ = walk

    def fit(every):
        kept = [(k, s) for k in range(every, STEPS + 1, every) for s in LENGTHS[:2]]
        fit = fit_profile(kept, STEPS, LENGTHS[2])
        found = sum(share * averages[one] for share, one in zip(fit.coefficients, kept, strict=True))
        return np.abs(found - averages[STEPS, LENGTHS[2]]).max() / np.abs(averages[STEPS, LENGTHS[2]]).max(), fit

    error, exact = fit(2)
    assert error < 1e-6 and exact.residual < 1e-6
    errors, fits = zip(*(fit(every) for every in (4, 8, 16)), strict=True)
    assert [*errors] == sorted(errors) and fits[0].residual < fits[1].residual < fits[2].residual < 0.05


@pytest.mark.parametrize("steps,every", [(4000, 10), (100_000, 5000)])
def test_rounding_of_snapshots_is_not_blown_up(steps, every):
    """Though many of them are nearly sums of one another."""
    kept = [(k, s) for k in range(every, steps + 1, every) for s in (0.05, 0.1)]
    fit = fit_profile(kept, steps, 0.07)
    assert fit.gain < 1 and fit.residual < 0.01
