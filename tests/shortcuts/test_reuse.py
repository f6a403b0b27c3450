"""What blocks changed at an earlier step, used again: which steps and blocks run, and that the pieces are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_pixart import TINY, make_inputs, random_params, run

from pixart_jax.shortcuts.reuse import PRESETS, Reuse, reusing
from pixart_jax.shortcuts.text_once import remember_text

# What is left out lies in both stacks.
SIGMA = TINY.clone(kv_compress=(1, 1, 2, 2), qk_norm=True)


@pytest.fixture(scope="module")
def stepped():
    """The model of every second step, compiled, and its first state."""
    model = reusing(SIGMA, lambda apply: apply, Reuse(2, 1 / 4, 1 / 4))
    return jax.jit(model.call), model.begin(jnp.zeros(make_inputs(SIGMA)[0][0].shape))


@pytest.mark.parametrize("once", [True, False])
def test_the_pieces_are_the_whole(stepped, once):
    call, state = stepped
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    given = remember_text(SIGMA)(params, None, None, **conditions) if once else conditions
    expected = run(SIGMA, params).eps
    for _ in range(3):
        (eps, _), state = call(params, *arguments, state, **given)
        # Of the same tokens, the change is the same.
        np.testing.assert_allclose(eps, expected, atol=5e-5)
    assert state[0] == 3


def test_between_two_steps_blocks_are_left_out(stepped):
    call, state = stepped
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    _, state = call(params, *arguments, state, **conditions)
    # The second block of each stack of two is left out from the first stack, and the first from the second.
    broken = dict(params)
    for name, place in (("blocks_0", 1), ("blocks_2", 0)):
        broken[name] = jax.tree.map(lambda leaf, place=place: jnp.asarray(leaf).at[place].set(jnp.nan), params[name])
    later = arguments[0] + 0.1, arguments[1]
    (eps, _), state = call(broken, *later, state, **conditions)
    expected, before = run(SIGMA, params, later).eps, run(SIGMA, params).eps
    assert 0 < np.abs(eps - expected).mean() < np.abs(before - expected).mean()
    (eps, _), _ = call(broken, *later, state, **conditions)
    assert np.isnan(eps).all()


def test_presets_leave_out_what_they_say():
    """Of XL/2's 28 blocks and 20 steps, blocks alone counted."""
    for name, how in PRESETS.items():
        first, stop = how.span(28)
        whole = how.whole_steps(20)
        cost = (whole + (20 - whole) * (28 - (stop - first)) / 28) / 20
        assert abs(1 / cost - float(name)) < 0.1
