"""The model without a stretch of its blocks, as guidance's null branch: what is predicted, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.adapters.lora import Lora, LoraSpec
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.models import routing
from pixart_jax.models.params import apply_of, init_params
from pixart_jax.models.path_drop import may_drop
from pixart_jax.models.pixart import PixArt
from pixart_jax.models.routing import Route, routed
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import PATH_DROPPED, branches, guided, null_branch
from pixart_jax.samplers.program import DROPPED_PATH, make_sample_fn
from pixart_jax.shortcuts.eight_bits import in_eight_bits, quantize_tree

ROWS, TOKENS, SCALE = 2, 16, 3.0
# Three stacks of parameters; all blocks in a row, so that the compiler's count sees each.
MODEL = PixArt(
    hidden_size=24, depth=6, num_heads=2, text_dim=8, max_text_tokens=4, kv_compress=(1, 1, 2, 2, 1, 1), scan_unroll=6
)
MARK = {PATH_DROPPED: np.ones(ROWS, bool)}


@pytest.fixture(scope="module")
def parts():
    """(parameters that are all noise, tokens, t, conditions)"""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    conditions = {
        "positions": rng.uniform(0, 4, (ROWS, TOKENS, 2)).astype(np.float32),
        "num_tokens": np.int32([16, 12]),
        "text": rng.standard_normal((ROWS, 4, 8)).astype(np.float32),
        "text_length": np.int32([4, 2]),
        "text_drop": np.zeros(ROWS, bool),
    }
    return (
        params,
        jnp.asarray(rng.standard_normal((ROWS, TOKENS, 16)), jnp.float32),
        jnp.float32([300, 700]),
        conditions,
    )


def without(stretch, params, tokens, t, *, positions, **conditions):
    """By hand: the blocks before the stretch, and those behind it."""
    bound = MODEL.bind({"params": params})
    x, cond = bound.embed_tokens(tokens, positions), bound.embed_conditions(t, **conditions)
    for number in range(MODEL.depth):
        if not stretch[0] <= number <= stretch[1]:
            x = routing._run(MODEL, params, x, cond, number, number + 1)
    return bound.predict(x, cond)


# Within one stack, of several, from the first block on, to the last one, all but one, and all.
@pytest.mark.parametrize("stretch", [(1, 1), (1, 4), (3, 4), (0, 2), (2, 5), (0, 4), (0, 5)], ids=str)
def test_the_stretch_is_left_out_and_nothing_else(parts, stretch):
    params, tokens, t, conditions = parts
    found = may_drop(MODEL, stretch, apply_of)(params, tokens, t, **conditions, **MARK)
    for ours, theirs in zip(found, without(stretch, params, tokens, t, **conditions), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_adapters_and_int8_go_along(parts):
    params, tokens, t, conditions = parts
    stretch, lora = (1, 4), Lora(None, LoraSpec(rank=2))
    trained, frozen = lora.split(quantize_tree(params), jax.random.key(0))
    trained = jax.tree.map(lambda leaf: leaf + 0.3, trained)

    def over(model, trained, **mark):
        adapted = dataclasses.replace(lora, model=in_eight_bits(model, "weights"))
        return jax.jit(adapted.apply)(trained, frozen, tokens, t, **conditions, **mark).eps

    by_hand = functools.partial(without, stretch)
    found, expected = over(may_drop(MODEL, stretch, apply_of), trained, **MARK), over(by_hand, trained)
    assert np.abs(expected - over(by_hand, jax.tree.map(jnp.zeros_like, trained))).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_unasked_it_is_the_model(parts):
    params, tokens, t, conditions = parts
    one, other = (
        str(jax.make_jaxpr(apply)(params, tokens, t, **conditions))
        for apply in (apply_of(MODEL), routed(MODEL, Route(0.5, 1, 4, path_drop=0.1)))
    )
    assert one == other


def test_it_is_what_a_routed_model_learns_where_the_path_is_dropped(parts):
    params, tokens, t, conditions = parts
    route = Route(0.5, 1, 4, path_drop=1.0)
    keys = jax.random.split(jax.random.key(0), ROWS)
    dropped, trained = (
        routed(MODEL, route)(params, tokens, t, **conditions, **how).eps for how in (MARK, {"route_keys": keys})
    )
    real = np.arange(TOKENS) < conditions["num_tokens"][:, None]
    np.testing.assert_allclose(dropped[real], trained[real], rtol=0, atol=1e-5)


def test_guidance_is_the_formula_of_two_calls(parts):
    params, tokens, t, conditions = parts
    null = null_branch(conditions)
    apply = may_drop(MODEL, (1, 4), apply_of)

    @jax.jit
    def denoise(interval, scale):
        given = branches(conditions, null, prepare=lambda given: given, alone=True, dropping=True)
        assert given["alone"] is conditions and given.keys() == {"alone", "weak"}
        return guided(lambda x, t, given: apply(params, x, t, **given), given, scale, interval)(tokens, t)

    weak, _ = jax.jit(functools.partial(without, (1, 4)))(params, tokens, t, **conditions | null)
    strong, v = jax.jit(apply_of(MODEL))(params, tokens, t, **conditions)
    # Of a batch, the first timestep, 300, decides.
    inside, outside = denoise(np.float32([200, 400]), SCALE), denoise(np.float32([500, 800]), SCALE)
    assert denoise._cache_size() == 1
    size = float(np.abs(inside[0]).max())
    np.testing.assert_allclose(inside[0], weak + SCALE * (strong - weak), rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(outside[0], strong, rtol=0, atol=1e-6 * size)
    for variance in (inside[1], outside[1]):
        np.testing.assert_allclose(variance, v, rtol=0, atol=1e-6 * size)


def test_the_compiler_counts_what_is_left():
    """Of a guided step, and not of twice as many of the blocks that are left out."""
    width, tokens, text, rows = 192, 256, 4, 2
    model = MODEL.clone(hidden_size=width, depth=6, num_heads=2, kv_compress=())
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    shapes = {"positions": (rows, tokens, 2), "text": (rows, text, 8)}
    conditions = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    null = {"text_drop": jax.ShapeDtypeStruct((rows,), bool)}
    noise, keys = (
        jax.ShapeDtypeStruct((rows, tokens, 16), jnp.float32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)),
    )
    schedule = linear_schedule()

    def flops(guidance):
        apply = may_drop(model, (1, 3), apply_of)
        sample = make_sample_fn(apply, schedule, build_sampler("ddim", schedule, 2), guidance=guidance)
        return sample.lower(params, noise, keys, conditions | null, null, SCALE).cost_analysis()["flops"]

    block = tokens * (4 + 8 + 2) * width**2 + 2 * tokens**2 * width + 2 * text * (width + tokens) * width
    both, found = flops("cfg"), flops(DROPPED_PATH)
    assert both - found == pytest.approx(3 * rows * 2 * block, rel=0.03)
    # Three of twelve.
    assert found / both == pytest.approx(0.75, abs=0.02)
