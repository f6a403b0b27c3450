"""SA-Solver equals the golden cases, the spec's toy (§9.4) and diffusers' scheduler."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import load_arrays
from samplers.sampler_cases import BETAS, CASE, SCHEDULE, compare_with_diffusers, relative_error, run_table

from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide
from pixart_jax.samplers.sa_solver import diffusers_table, reference_table

TAUS = {"default": {}, "0": {"tau": np.zeros_like}, "1": {"tau": np.ones_like}}


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("num_steps", [5, 10, 25])
def test_the_repositories(num_steps, eta):
    # It draws one tensor that it does not use before all others.
    x = run_table(reference_table(SCHEDULE, num_steps, eta=eta), guided=True, first_noise=1)
    assert relative_error(x, load_arrays(CASE)[f"out/sa_repo_{num_steps}_eta{eta}/sample"]) < 1e-5


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("num_steps", [10, 25])
def test_diffusers(num_steps, tau):
    case = load_arrays(CASE)
    table = diffusers_table(SCHEDULE, num_steps, **TAUS[tau])
    np.testing.assert_array_equal(table.t, case[f"out/sa_diffusers_{num_steps}/timesteps"])
    np.testing.assert_allclose(table.sigma / table.alpha, case[f"out/sa_diffusers_{num_steps}/sigmas"][:-1], rtol=1e-5)
    x = run_table(table, guided=True)
    assert relative_error(x, case[f"out/sa_diffusers_{num_steps}_tau{tau}/sample"]) < 1e-5


@pytest.mark.parametrize("num_steps,strength", [(1, 1.0), (2, 1.0), (3, 1.0), (17, 1.0), (12, 0.55), (9, 0.3)])
def test_any_number_of_steps_and_late_starts(num_steps, strength):
    scheduler = diffusers.SASolverScheduler(**BETAS)
    assert compare_with_diffusers("sa-solver-diffusers", scheduler, num_steps, strength) < 1e-4


@pytest.mark.parametrize("num_steps,ends", [(10, (0.913095, -1.585661)), (25, (1.662402, -2.299082))])
def test_spec_toy(num_steps, ends):
    def model(x, t, conditions):
        return 0.9 * x + 0.1 * jnp.sin(t / 100)[:, None] + conditions["c"], None

    denoise = guide(model, {"c": jnp.full((1, 1), 0.05)}, {"c": jnp.zeros((1, 1))}, 3.0)
    noise = jnp.linspace(1, -1, 8)[None]
    x = build_sampler("sa-solver", SCHEDULE, num_steps)(denoise, jnp.linspace(-1.5, 1.5, 8)[None], lambda step: noise)
    np.testing.assert_allclose(x[0, jnp.array([0, -1])], ends, rtol=1e-4)
