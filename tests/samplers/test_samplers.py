"""Samplers equal the golden case `samplers`, the spec's toys (§9.4) and diffusers' schedulers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden_cases import load_arrays, load_config

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.schedule import linear_schedule, respace
from pixart_jax.errors import InputError
from pixart_jax.samplers import FEW_STEPS, FLOW_SAMPLERS, SAMPLERS, build_sampler
from pixart_jax.samplers.guidance import guide, null_branch
from pixart_jax.samplers.iddpm import per_sample_noise, sample_iddpm

SCHEDULE = linear_schedule()


def schedule_of(name):
    return FlowSchedule() if name in FLOW_SAMPLERS else SCHEDULE


@pytest.fixture(scope="module")
def case():
    return load_arrays("samplers")


def toy_model(x, t, conditions):
    cond = conditions["cond"].mean(axis=(1, 2))[:, :, None, None]
    return 0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1, 1) * cond, 0.3 * jnp.tanh(x)


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_many_steps_are_refused_or_finite(name):
    for num_steps in (999, 1000, 1500):
        try:
            sampler = build_sampler(name, schedule_of(name), num_steps)
        except InputError as error:
            assert f"num_steps = {num_steps}" in str(error)
        else:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sampler.rows))


@pytest.mark.parametrize("num_steps", [5, 14, 20, 30])
def test_dpm_solver_golden(case, num_steps):
    scale = load_config("samplers")["guidance_scale"]
    denoise = guide(toy_model, {"cond": case["in/cond"]}, {"cond": case["in/uncond"]}, scale)
    # The golden numbers are α's: second order to the end from 10 steps on.
    x = build_sampler("dpm-solver-alpha", SCHEDULE, num_steps)(denoise, case["in/z"], None)
    assert relative_error(x, case[f"out/dpmpp_2m_{num_steps}"]) < 1e-4


def test_iddpm_golden(case):
    spaced = respace(SCHEDULE, 25)
    np.testing.assert_array_equal(np.sort(case["out/iddpm_25_timesteps"]), spaced.timesteps)
    denoise = guide(toy_model, {"cond": case["in/cond"]}, None, 1.0)
    noises = jnp.asarray(case["in/iddpm_noises"])
    x = jax.jit(lambda z: sample_iddpm(denoise, z, spaced, lambda step: noises[step])[0])(case["in/z"])
    assert relative_error(x, case["out/iddpm_25"]) < 1e-4


SPEC_DPM = {  # spec §9.4: final states of the two repositories' solvers
    ("dpm-solver-alpha", 9): (-2.11423, 0.280013),
    ("dpm-solver-alpha", 14): (-2.509385, 0.44201),
    ("dpm-solver-alpha", 20): (-2.459634, 0.390812),
    ("dpm-solver", 9): (-2.11423, 0.280013),
    ("dpm-solver", 14): (-2.288683, 0.304558),
    ("dpm-solver", 20): (-2.342607, 0.314485),
}


@pytest.mark.parametrize("name,num_steps", SPEC_DPM)
def test_dpm_solver_spec_toy(name, num_steps):
    def model(x, t, conditions):
        return 0.9 * x + 0.1 * jnp.sin(t / 100)[:, None] + conditions["c"], None

    denoise = guide(model, {"c": jnp.full((1, 1), 0.05)}, {"c": jnp.zeros((1, 1))}, 4.5)
    x = build_sampler(name, SCHEDULE, num_steps)(denoise, jnp.linspace(-1.5, 1.5, 8)[None], None)
    np.testing.assert_allclose(x[0, jnp.array([0, -1])], SPEC_DPM[name, num_steps], rtol=1e-4)


@pytest.mark.parametrize("num_steps", [4, 14, 20, 33])
@pytest.mark.parametrize(
    "name,scheduler",
    [
        ("dpm-solver-diffusers", diffusers.DPMSolverMultistepScheduler(beta_start=1e-4)),
        (
            "ddim",
            diffusers.DDIMScheduler(
                beta_start=1e-4, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
            ),
        ),
    ],
)
def test_equals_diffusers(name, scheduler, num_steps, case):
    scheduler.set_timesteps(num_steps)
    x = torch.from_numpy(case["in/z"])
    for t in scheduler.timesteps:
        eps = 0.6 * x + 0.2 * torch.sin(t / 150)
        x = scheduler.step(eps, t, x).prev_sample
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0], ordered=True)
        return 0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1, 1), None

    ours = build_sampler(name, SCHEDULE, num_steps)(denoise, jnp.asarray(case["in/z"]), None)
    jax.effects_barrier()
    assert seen == scheduler.timesteps.tolist()
    assert relative_error(ours, x.numpy()) < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_program_serves_every_guidance_scale(name):
    sampler = build_sampler(name, schedule_of(name), FEW_STEPS.get(name, 6))

    @jax.jit
    def run(x, scale, keys):
        conditions = {"text_drop": jnp.zeros(2, bool)}

        def model(x, t, conditions):
            return x * jnp.where(conditions["text_drop"], 0.5, 0.7)[:, None], 0.1 * x

        denoise = guide(model, conditions, null_branch(conditions), scale)
        return sampler(denoise, x, per_sample_noise(keys, x.shape[1:]))

    keys = jax.random.split(jax.random.key(0), 2)
    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    outputs = [np.asarray(run(x, scale, keys)) for scale in (1.0, 3.0, 4.5)]
    assert run._cache_size() == 1
    assert not np.allclose(outputs[0], outputs[1]) and np.all(np.isfinite(outputs))


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(1), 3)
    alone, batch = per_sample_noise(keys[1:2], (4, 5)), per_sample_noise(keys, (4, 5))
    np.testing.assert_array_equal(alone(2)[0], batch(2)[1])
    assert not np.allclose(batch(2), batch(3))


def test_unknown_sampler_and_bad_steps():
    with pytest.raises(InputError, match=r"unknown sampler 'unipc'; known are dpm-solver"):
        build_sampler("unipc", SCHEDULE, 20)
    for name in SAMPLERS:
        with pytest.raises(InputError, match="num_steps = 0"):
            build_sampler(name, schedule_of(name), 0)
