"""Euler's and Heun's methods equal diffusers' schedulers."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from samplers.sampler_cases import BETAS, SCHEDULE, compare_with_diffusers

from pixart_jax.errors import InputError
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.euler import euler_table, heun_table

SCHEDULERS = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_steps,strength", [(2, 1.0), (3, 1.0), (13, 1.0), (10, 0.6), (7, 0.15)])
def test_equals_diffusers(name, num_steps, strength):
    assert compare_with_diffusers(name, SCHEDULERS[name](**BETAS), num_steps, strength) < 1e-4


def test_one_step_begins_at_noise():
    for name in SCHEDULERS:
        assert build_sampler(name, SCHEDULE, 1).first_t == 999
    with pytest.raises(InputError, match="num_steps = 0: Euler's and Heun's methods take at least 1 step"):
        build_sampler("heun", SCHEDULE, 0)


def test_heun_calls_the_model_twice_for_each_step_but_the_last():
    assert euler_table(SCHEDULE, 5).num_rows == 5 and heun_table(SCHEDULE, 5).num_rows == 9
    np.testing.assert_allclose(heun_table(SCHEDULE, 3).t, [999, 499.5, 499.5, 0, 0])


def test_heun_is_nearer_to_the_end_of_the_way_than_euler():
    """Over a model whose end state is known from very many steps."""

    def denoise(x, t):
        return 0.6 * x + 0.2 * jnp.sin(t / 150)[:, None], None

    z = jnp.linspace(-1, 1, 6)[None]
    end = build_sampler("euler", SCHEDULE, 1000)(denoise, z, None)
    far = {name: np.abs(build_sampler(name, SCHEDULE, 20)(denoise, z, None) - end).max() for name in SCHEDULERS}
    assert far["heun"] < far["euler"] / 3
