"""Rectified flow is drawn as diffusers draws it, and every other sampler draws from models of every prediction."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.predictions import PREDICTIONS
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.samplers import FEW_STEPS, FLOW_SAMPLERS, SAMPLERS, build_sampler
from pixart_jax.samplers.predictions import Target
from pixart_jax.samplers.steps import Stateful

SCHEDULE = linear_schedule()
Z = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
SCHEDULERS = {
    "flow-euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    "flow-heun": lambda shift: diffusers.FlowMatchHeunDiscreteScheduler(shift=shift),
    "flow-dpm-solver": lambda shift: diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_steps,shift", [(2, 1.0), (13, 1.0), (20, 3.0)])
def test_equals_diffusers(name, num_steps, shift):
    scheduler = SCHEDULERS[name](shift)
    scheduler.set_timesteps(num_steps)
    x, seen = torch.from_numpy(Z), []
    for t in scheduler.timesteps:
        seen.append(float(t))
        x = scheduler.step(0.6 * x + 0.2 * torch.sin(t / 150), t, x).prev_sample

    sampler = build_sampler(name, FlowSchedule(shift), num_steps)
    np.testing.assert_allclose(sampler.rows["t"], seen, atol=1e-3)
    ours = sampler(lambda x, t: (0.6 * x + 0.2 * jnp.sin(t / 150).reshape(-1, 1, 1), None), jnp.asarray(Z), None)
    assert np.abs(ours - x.numpy()).max() / np.abs(x.numpy()).max() < 1e-4


def model_of(prediction):
    """What predicts perfectly, of pictures that are normal with standard deviation 0.5."""

    def apply(params, x, t, *, ask=None):
        if prediction == "flow":
            alpha, sigma = noise_level(FlowSchedule(), t)
        else:
            alpha, sigma = noise_level(SCHEDULE, t)
        alpha, sigma = (level.reshape(-1, 1, 1) for level in (alpha, sigma))
        x0 = x * 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        eps = x * sigma / (0.25 * alpha**2 + sigma**2)
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction], 0 * x

    return apply


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_sampler_draws_the_same_from_every_prediction(prediction):
    """The same model, asked for something else, is the same model."""
    target = Target(prediction)
    for name in set(target.samplers()) - {*FLOW_SAMPLERS}:
        sampler = build_sampler(name, SCHEDULE, FEW_STEPS.get(name, 6))

        def draw(apply, sampler=sampler):
            return sampler(lambda x, t: apply(None, x, t), jnp.asarray(Z), lambda i: 0.1 * jnp.asarray(Z))

        fitted = target.fit(model_of(prediction), target.schedule(name))
        np.testing.assert_allclose(draw(fitted), draw(model_of("eps")), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_samplers_of_flow_end_where_the_way_ends(name):
    """Of normal pictures the way from noise z leads to z/2."""
    schedule = Target("flow").schedule(name)
    sampler = build_sampler(name, schedule, 200)
    drawn = sampler(lambda x, t: model_of("flow")(None, x, t), jnp.asarray(Z), None)
    np.testing.assert_allclose(drawn, Z / 2, atol=0.02)
    late = build_sampler(name, schedule, 10, start=0.5)
    assert 300 < late.first_t < 700


def test_what_hands_something_on_is_converted_too():
    call = model_of("v")
    counting = Stateful(lambda params, x, t, state: (call(params, x, t), state + 1), lambda x: 0)
    (eps, _), state = Target("v").fit(counting, SCHEDULE).call(None, jnp.asarray(Z), jnp.array([500, 20]), 3)
    expected, _ = model_of("eps")(None, jnp.asarray(Z), jnp.array([500, 20]))
    np.testing.assert_allclose(eps, expected, atol=1e-5)
    assert state == 4


def test_who_predicts_the_noise_is_called_as_it_is():
    apply = model_of("eps")
    assert Target().fit(apply, SCHEDULE) is apply
    assert Target("flow").fit(apply, FlowSchedule()) is apply


def test_what_cannot_be_drawn_is_refused():
    for name in FLOW_SAMPLERS:
        with pytest.raises(InputError, match=f"sampler = '{name}'.*this model predicts 'v'; take one of dpm-solver"):
            Target("v").schedule(name)
        with pytest.raises(InputError, match="walks along another process"):
            build_sampler(name, SCHEDULE, 5)
    with pytest.raises(InputError, match="'iddpm': needs the learned variance"):
        Target("flow").schedule("iddpm")
    with pytest.raises(InputError, match=r"'iddpm': needs the learned variance.*none; take one of dpm"):
        Target("x0", learned_variance=False).schedule("iddpm")
    with pytest.raises(InputError, match="walks along another process"):
        build_sampler("ddim", FlowSchedule(), 5)
    assert {*Target("flow").samplers()} | {"iddpm"} == {*SAMPLERS}
