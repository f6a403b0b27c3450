"""Steps taken one by one are those of the compiled loop, can be looked at, and end where somebody wants it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.samplers import FEW_STEPS, FLOW_SAMPLERS, SAMPLERS, build_sampler
from pixart_jax.samplers.program import draw_noise, make_sample_fn, words_of
from pixart_jax.samplers.steps import Stateful
from pixart_jax.samplers.stepwise import StepwiseSampler, compile_programs

SCHEDULE = linear_schedule()


def schedule_of(name):
    return FlowSchedule() if name in FLOW_SAMPLERS else SCHEDULE


CONDITIONS = {"shift": np.float32([0.1, 0.4]), "text_drop": np.zeros(2, bool)}
NULL = {"text_drop": np.ones(2, bool)}
PARAMS = np.float32(0.6)


def call(params, x, t, state, *, shift, text_drop):
    shift = jnp.where(text_drop, 0.0, shift)[:, None, None]
    eps = params * x + shift * jnp.sin(t / 150)[:, None, None] + 0.01 * state
    return (eps, jnp.tanh(x)), state + 1


TOY = Stateful(call, lambda x: jnp.zeros((), jnp.float32))


def keep(known, x, t, noise):
    return jnp.where(jnp.arange(x.shape[1])[:, None] < 2, known + 0.1 * noise, x)


def both(name, *, start=1.0, guidance="cfg", correct=False, interval=None, watch=None):
    """(tokens, faults) of the loop and of the steps."""
    schedule = schedule_of(name)
    sampler = build_sampler(name, schedule, FEW_STEPS.get(name, 7), start=start)
    x, keys = draw_noise(words_of(3), np.arange(2, dtype=np.int32), (4, 8))
    clean = np.ones((2, 4, 8), np.float32) if start < 1 else None
    given = jax.tree_util.Partial(keep, np.full((2, 4, 8), 0.5, np.float32)) if correct else None
    # Who is guided in an interval hands nothing on.
    apply = (lambda *args, **kwargs: call(*args, jnp.float32(0), **kwargs)[0]) if interval else TOY
    interval = None if interval is None else np.float32(interval)
    arguments = (PARAMS, x, keys, CONDITIONS, NULL, 2.5, clean, given, interval)
    loop = make_sample_fn(apply, schedule, sampler, guidance=guidance)(*arguments)
    programs = compile_programs(apply, schedule, sampler.take_step, guidance=guidance)
    return loop, StepwiseSampler(programs, sampler, watch)(*arguments)


def assert_same(pair):
    (tokens, found), (ours, ours_found) = pair
    # One program's rounding is not another's.
    np.testing.assert_allclose(ours, tokens, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(ours_found, found)
    assert np.asarray(tokens).std() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_steps_of_every_sampler_are_those_of_the_loop(name):
    assert_same(both(name))


@pytest.mark.parametrize(
    "how",
    [
        {"start": 0.6},
        {"guidance": "none"},
        {"correct": True},
        {"name": "sa-solver", "correct": True, "start": 0.5},
        {"name": "iddpm", "correct": True},
        {"name": "flow-dpm-solver", "correct": True, "start": 0.6},
        {"interval": (200, 700)},
    ],
)
def test_so_are_late_starts_corrections_and_intervals(how):
    assert_same(both(**{"name": "dpm-solver"} | how))


def test_every_step_is_seen_and_the_last_is_the_picture():
    seen = []
    (_, _), (tokens, _) = both("ddim", watch=seen.append)
    assert [(glimpse.step, glimpse.num_steps) for glimpse in seen] == [(i, 7) for i in range(1, 8)]
    np.testing.assert_allclose(seen[-1].tokens, tokens, rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(seen[0].tokens) - tokens).max() > 0.1


def test_who_watches_can_end_it():
    taken = []

    def watch(glimpse):
        taken.append(glimpse.step)
        if glimpse.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        both("ddim", watch=watch)
    assert taken == [1, 2]


@pytest.mark.parametrize("names", [("dpm-solver", "dpm-solver-diffusers"), ("lcm", "dmd"), ("iddpm",)])
def test_one_compilation_serves_any_number_of_steps_and_samplers_of_a_kind(names, compilations):
    built = [build_sampler(name, SCHEDULE, steps) for name in names for steps in ((1,) if name == "dmd" else (3, 5))]
    assert len({sampler.take_step for sampler in built if sampler.rows is not None}) <= 2
    programs = compile_programs(TOY, SCHEDULE, built[0].take_step, guidance="cfg")
    x, keys = draw_noise(words_of(3), np.arange(2, dtype=np.int32), (4, 8))
    for sampler in built:
        if sampler.take_step is built[0].take_step:
            StepwiseSampler(programs, sampler)(PARAMS, x, keys, CONDITIONS, NULL, 2.5)
    assert compilations.count("jit(sample_step)") == 1
