"""Guidance in an interval of timesteps alone: outside it the conditional branch is drawn by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide
from pixart_jax.samplers.program import make_sample_fn

SCHEDULE = linear_schedule()
CONDITIONS, NULL = {"level": np.array([1.0, 2.0], np.float32)}, {"level": np.zeros(2, np.float32)}
SCALE = 3.0


def toy(x, t, conditions):
    return 0.5 * x + (t / 1000 * conditions["level"])[:, None], None


@pytest.mark.parametrize("sampler", ["euler", "dpm-solver", "heun", "ddim"])
def test_outside_the_interval_the_scale_is_one(sampler):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    run = jax.jit(lambda interval: build_sampler(sampler, SCHEDULE, 6)(
        guide(toy, CONDITIONS, NULL, SCALE, interval=interval), x, None
    ))  # fmt: skip

    def expected(low, high):
        def denoise(x, t):
            scale = jnp.where((low <= t[0]) & (t[0] <= high), SCALE, 1.0)
            return guide(toy, CONDITIONS, NULL, scale)(x, t)

        return build_sampler(sampler, SCHEDULE, 6)(denoise, x, None)

    for interval in ([300, 700], [0, 1000], [998, 999], [5, 5]):
        np.testing.assert_allclose(run(jnp.float32(interval)), expected(*interval), rtol=1e-5, atol=1e-4)
    assert run._cache_size() == 1
    assert np.abs(run(jnp.float32([300, 700])) - run(jnp.float32([0, 1000]))).max() > 0.1


def test_work_falls_with_the_interval():
    """The model of both branches, and that of one, are each called as often as the interval says."""
    calls = []

    def apply(params, x, t, **conditions):
        jax.debug.callback(lambda t: calls.append(len(t)), t)
        return toy(x, t, conditions)

    sample = make_sample_fn(apply, SCHEDULE, build_sampler("ddim", SCHEDULE, 10))
    keys, noise = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 5))
    for interval, both in (((450, 650), 2), ((0, 1000), 10), ((1, 2), 0)):
        calls.clear()
        jax.block_until_ready(sample({}, noise, keys, CONDITIONS, NULL, SCALE, None, None, jnp.float32(interval)))
        jax.effects_barrier()
        assert sorted(calls) == [2] * (10 - both) + [4] * both
