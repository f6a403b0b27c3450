"""One optimizer step: accumulation, EMA, warm-up, what is trained and what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from pixart_jax.config import build_objective, optimizer_spec
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.optimizers import learning_rate_schedule
from pixart_jax.training.program import Program
from pixart_jax.training.step import ema_memory, make_train_step
from tools.bench.train import synthetic_batch


@functools.cache
def setup(**optimizer):
    """(state, batch, step) of a tiny model; a step's program is compiled once for all tests that use it."""
    config = tiny_config("unused")
    config.optimizer.update({"warmup_steps": 0} | optimizer)
    program = Program(config, make_mesh())
    state, _ = program.birth.fresh()
    # Cross-attention starts at zero; nudge every parameter so that all of them matter.
    state = state.replace(params=jax.tree.map(lambda p: p + 0.02, state.params))

    @functools.cache
    def compiled(**kwargs):
        objective = build_objective(config, program.adapter)
        schedule = learning_rate_schedule(optimizer_spec(config))
        kwargs = {"seed": 5, "ema_decay": 0.9, "learning_rate": schedule} | kwargs
        return jax.jit(make_train_step(objective, program.birth.tx, **kwargs))

    return state, synthetic_batch(config), lambda state, batch, **kwargs: compiled(**kwargs)(state, {}, batch)


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("accumulation_steps", [2, 8])
def test_accumulation_changes_nothing_but_rounding(accumulation_steps):
    state, batch, step = setup()
    whole, whole_metrics = step(state, batch)
    parts, parts_metrics = step(state, batch, accumulation_steps=accumulation_steps)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-5, err_msg=name)
    # Adam's first moment is the gradient: parameters themselves would hide an error behind Adam's normalisation.
    for (name, moment), other in zip(flat(whole.opt_state).items(), flat(parts.opt_state).values(), strict=True):
        np.testing.assert_allclose(other, moment, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("before,rate", [(0, 0.9), (2, 0.75), (30, 0.225), (80, 0.1), (10_000, 0.1)])
def test_the_average_warms_up(before, rate):
    """1 - min(decay, (1 + step) / (10 + step))."""
    state, batch, step = setup()
    state = state.replace(step=jnp.asarray(before, jnp.int32))
    new, _ = step(state, batch, ema_warmup=True)
    expected = jax.tree.map(lambda ema, p: ema + rate * (p - ema), state.ema_params, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.ema_params, expected)


@pytest.mark.parametrize(
    "decay,warmup,steps,memory",
    [
        (0.9999, False, 100, 0.99),
        (0.9999, True, 100, 0),
        (0.9, False, 12, 0.28),
        (0.9, True, 1, 0.1),
        (1.0, False, 9, 1),
    ],
)
def test_how_much_of_its_beginning_is_left_in_an_average(decay, warmup, steps, memory):
    assert ema_memory(decay, warmup, steps) == pytest.approx(memory, abs=0.003)


def test_ema_follows_the_new_parameters():
    state, batch, step = setup()
    new, _ = step(state, batch)
    expected = jax.tree.map(lambda ema, p: 0.9 * ema + 0.1 * p, state.ema_params, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.ema_params, expected)


def test_everything_is_trained_but_the_null_caption():
    state, batch, step = setup(weight_decay=0.5)
    new, _ = step(state, batch)
    before, after = flat(state.params), flat(new.params)
    unchanged = {name for name in before if np.array_equal(before[name], after[name])}
    assert unchanged == {"['y_embedder']['y_embedding']"}


def test_a_step_depends_on_state_and_batch_alone():
    state, batch, step = setup()
    first, again = step(state, batch), step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    later = step(state.replace(step=jnp.int32(1)), batch)
    assert later[1]["loss"] != first[1]["loss"]
    other_seed = step(state, batch, seed=6)
    assert other_seed[1]["loss"] != first[1]["loss"]


def test_warm_up_starts_at_zero_and_counts_optimizer_steps():
    state, batch, step = setup(warmup_steps=4, learning_rate=1e-3)
    step = functools.partial(step, accumulation_steps=2)
    new, metrics = step(state, batch)
    assert metrics["learning_rate"] == 0
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    newer, metrics = step(new, batch)
    assert metrics["learning_rate"] == pytest.approx(1e-3 / 4)
    # Adam's first updates have the size of their rate, so the reported rate is the one in effect.
    moved = np.abs(newer.params["x_embedder"]["kernel"] - new.params["x_embedder"]["kernel"]).max()
    assert 0.9e-3 / 4 < moved < 1.2e-3 / 4


def test_clipping_bounds_the_update_but_not_the_reported_norm():
    state, batch, step = setup(grad_clip=1e-3)
    new, metrics = step(state, batch)
    assert metrics["grad_norm"] > 1e-2
    first_moment = [leaf for name, leaf in flat(new.opt_state).items() if ".mu" in name]
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in first_moment)) / (1 - 0.9)
    assert norm == pytest.approx(1e-3, rel=1e-4)
