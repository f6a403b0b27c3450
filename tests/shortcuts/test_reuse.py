"""What blocks changed at earlier steps, used again: at which steps they run, and what is foretold in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_pixart import TINY, make_inputs, random_params, run

from pixart_jax.shortcuts.reuse import PRESETS, Reuse, reusing
from pixart_jax.shortcuts.text_once import remember_text

SIGMA = TINY.clone(kv_compress=(1, 1, 2, 2), qk_norm=True)


@pytest.fixture(scope="module")
def stepped():
    """The model whose blocks run at steps 0, 1, 3, 5 ..., compiled, and its first state."""
    model = reusing(SIGMA, lambda apply: apply, Reuse(2, 2))
    return jax.jit(model.call), model.begin(make_inputs(SIGMA)[0][0])


@pytest.mark.parametrize("once", [True, False])
def test_of_the_same_tokens_the_change_is_the_same(stepped, once):
    call, state = stepped
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    given = remember_text(SIGMA)(params, None, None, **conditions) if once else conditions
    expected = run(SIGMA, params).eps
    for _ in range(4):
        (eps, _), state = call(params, *arguments, state, **given)
        np.testing.assert_allclose(eps, expected, atol=5e-5)
    assert [int(state[0]), int(state[1])] == [4, 3]


def test_a_step_without_blocks_foretells_what_they_would_change(stepped):
    call, state = stepped
    params, (arguments, conditions) = random_params(SIGMA), make_inputs(SIGMA)
    steps = [(arguments[0] * (1 + 0.02 * i), arguments[1]) for i in range(4)]
    for step in steps[:2]:
        _, state = call(params, *step, state, **conditions)
    broken = params | {
        name: jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params[name]) for name in ("blocks_0", "blocks_2")
    }
    (eps, _), after = call(broken, *steps[2], state, **conditions)
    real = np.arange(16) < conditions["num_tokens"][:, None]
    expected, before = (run(SIGMA, params, steps[i]).eps for i in (2, 1))
    assert 0 < np.abs(eps - expected)[real].mean() < 0.5 * np.abs(before - expected)[real].mean()
    # Extrapolated: nearer than the last change as it was.
    (flat, _), _ = call(broken, *steps[2], (*state[:3], jnp.zeros_like(state[3])), **conditions)
    assert np.abs(eps - expected)[real].mean() < np.abs(flat - expected)[real].mean()
    (eps, _), _ = call(broken, *steps[3], after, **conditions)
    assert np.isnan(eps).all()


def test_presets_leave_out_what_they_say():
    assert [how.whole_steps(20) for how in PRESETS.values()] == [15, 14, 10]
    for name, how in PRESETS.items():
        assert 1200 / how.whole_steps(1200) == pytest.approx(float(name), rel=0.03)
        assert not how.leaves_out(0)
