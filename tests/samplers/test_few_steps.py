"""Consistency models and one-step students draw as the golden cases and diffusers' scheduler."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import load_arrays
from samplers.sampler_cases import BETAS, CASE, SCHEDULE, compare_with_diffusers, relative_error, run_table

from pixart_jax.errors import InputError
from pixart_jax.samplers import FEW_STEPS, build_sampler
from pixart_jax.samplers.few_steps import boundary_scalings, dmd_table, lcm_table

KINDS = {"repo": "lcm", "diffusers": "lcm-diffusers"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
def test_lcm(num_steps, kind):
    case, name = load_arrays(CASE), f"out/lcm_{kind}_{num_steps}"
    table = lcm_table(SCHEDULE, num_steps, diffusers=kind == "diffusers")
    np.testing.assert_array_equal(table.t, case[f"{name}/timesteps"])
    assert relative_error(run_table(table, guided=False), case[f"{name}/denoised"]) < 1e-5


def test_lcm_by_name_and_its_late_start():
    assert build_sampler("lcm", SCHEDULE, 4).first_t == build_sampler("lcm-diffusers", SCHEDULE, 4).first_t == 999
    late = load_arrays(CASE)["out/lcm_diffusers_4_strength06/timesteps"]
    np.testing.assert_array_equal(lcm_table(SCHEDULE, 4, 0.6, diffusers=True).t, late)
    assert build_sampler("lcm-diffusers", SCHEDULE, 4, start=0.6).first_t == late[0]
    np.testing.assert_array_equal(lcm_table(SCHEDULE, 4, 0.6).t, [599, 459, 319, 179])


@pytest.mark.parametrize("num_steps,strength", [(7, 1.0), (50, 1.0), (4, 0.6), (3, 0.33)])
def test_lcm_of_diffusers(num_steps, strength):
    scheduler = diffusers.LCMScheduler(**BETAS)
    assert compare_with_diffusers("lcm-diffusers", scheduler, num_steps, strength) < 1e-4


def test_a_consistency_model_is_the_identity_at_the_picture():
    skip, out = boundary_scalings(np.array([0, 999]))
    assert (skip[0], out[0]) == (1, 0) and skip[1] < 1e-8 and out[1] > 1 - 1e-8


@pytest.mark.parametrize("t", [200, 400, 999])
def test_dmd(t):
    x = run_table(dmd_table(SCHEDULE, t=t), guided=False)
    assert relative_error(x, load_arrays(CASE)[f"out/dmd_one_step_t{t}"]) < 1e-5


def test_dmd_does_not_clip():
    case = load_arrays(CASE)
    x = run_table(dmd_table(SCHEDULE), guided=False)
    assert relative_error(x, case["out/dmd_pipeline_step_clipFalse"]) < 1e-5
    assert np.abs(x).max() > 1 and build_sampler("dmd", SCHEDULE, 1).first_t == 400


@pytest.mark.parametrize("name", ["lcm", "lcm-diffusers", "dmd"])
def test_steps_that_do_not_fit_are_refused(name):
    with pytest.raises(InputError, match=r"num_steps = 51: (a consistency model takes 1 to 50|dmd draws in 1 step)"):
        build_sampler(name, SCHEDULE, 51)
    with pytest.raises(InputError, match=r"start = 0\.1"):
        build_sampler(name, SCHEDULE, 1 if name == "dmd" else 8, start=0.1)


@pytest.mark.parametrize("name", FEW_STEPS)
def test_noise_of_steps_and_of_a_correction_are_not_the_same(name):
    drawn = []

    def noise(step):
        drawn.append(step)
        return jnp.zeros((1, 2)) + step

    def correct(x, t, noise):
        return x + noise

    steps = FEW_STEPS[name]
    x = build_sampler(name, SCHEDULE, steps)(lambda x, t: (0 * x, None), jnp.ones((1, 2)), noise, correct)
    last = steps - 1 if name == "dmd" else 2 * steps - 1  # dmd draws none of its own
    if name == "dmd":
        assert x[0, 0] == pytest.approx(1 / SCHEDULE.sqrt_alphas_cumprod[400] + last)
    assert len(drawn) == (1 if name == "dmd" else 2)
    assert jnp.isfinite(x).all() and x[0, 0] > last
