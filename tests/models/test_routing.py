"""Tokens that pass blocks by: how many, which, what becomes of them; and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.config import (
    build_adapter,
    build_model,
    build_objective,
    build_route,
    check_config,
    default_config,
    phases,
)
from pixart_jax.errors import InputError
from pixart_jax.models import routing
from pixart_jax.models.params import apply_of, init_params
from pixart_jax.models.routing import Route, forward, routed
from pixart_jax.objectives.objective import descend, with_keys
from pixart_jax.training.program import Program
from tools.bench.train import training_batch

ROWS, WIDTH, DEPTH = 3, 24, 6
ROUTE = Route(0.5, 1, 3)


def tiny(**settings):
    """64 tokens in six blocks, the last three of which compress keys."""
    config = default_config()
    config.model.update({"hidden_size": WIDTH, "depth": DEPTH, "num_heads": 2, "resolution": 128, "text_dim": 8})
    config.model.update({"max_text_tokens": 4, "kv_compress_ratio": 2, "kv_compress_from": 3})
    config.data.update({"batch_size": ROWS, "source": "synthetic"})
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def parts():
    """(model, parameters that are all noise, tokens, t, conditions)"""
    config = tiny()
    model, batch = build_model(config), training_batch(config)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    batch["num_tokens"] = np.int32([64, 40, 4])
    return model, params, batch.pop("tokens"), jnp.arange(ROWS) * 200.0, batch


def chosen(route, parts, keys):
    model, _, tokens, _, batch = parts
    return routing._choose(model, route, keys, tokens.shape[1], batch["num_tokens"])


def test_each_picture_gives_its_share_of_its_real_tokens(parts):
    keys = jax.random.split(jax.random.key(3), ROWS)
    found = chosen(Route(0.3, 1, 3), parts, keys)
    # Whole blocks of 2x2 tokens, rounded down: of 16, 10 and 1 blocks.
    assert (found.unit, found.length) == (4, 12)
    np.testing.assert_array_equal(found.count, [16 - 4, 10 - 3, 1])
    tokens = np.broadcast_to(np.arange(64)[None, :, None], (ROWS, 64, 1)).astype(np.float32)
    picked = np.asarray(found.pick(tokens))[..., 0]
    for row, count, real in zip(picked, found.count, parts[-1]["num_tokens"], strict=True):
        taken = row[: count * 4].reshape(-1, 4)
        assert (np.diff(taken[:, 0]) > 0).all() and taken.max() < real
        np.testing.assert_array_equal(taken, taken[:, :1] + np.arange(4))
        assert (taken[:, 0] % 4 == 0).all()
    # Drawn anew for each key, and each unit as often as any other.
    many = jax.vmap(lambda key: chosen(Route(0.3, 1, 3), parts, jax.random.split(key, ROWS)).rank)
    ranks = np.asarray(many(jax.random.split(jax.random.key(4), 500)))
    stays = (ranks[:, 1, :10] < 7).mean(0)
    assert np.abs(stays - 0.7).max() < 0.1


def test_without_keys_it_is_the_model(parts):
    model, params, tokens, t, batch = parts
    one, other = (jax.make_jaxpr(f)(params, tokens, t, **batch) for f in (apply_of(model), routed(model, ROUTE)))
    assert str(one) == str(other)


def test_a_route_that_passes_nothing_computes_what_the_model_does(parts):
    """Whatever the backward pass computes again."""
    model, params, tokens, t, batch = parts
    keys = jax.random.split(jax.random.key(3), ROWS)

    def loss(apply):
        def of(params):
            eps, v = apply(params, tokens, t, **batch)
            real = jnp.arange(64) < batch["num_tokens"][:, None]
            return jnp.where(real[..., None], jnp.sin(eps) + v, 0).sum()

        return jax.jit(jax.value_and_grad(of))(params)

    nothing = routed(model.clone(remat="full"), Route(0.0, 1, 4))
    wanted, gradients = loss(apply_of(model))
    found, others = loss(lambda *args, **kwargs: nothing(*args, route_keys=keys, **kwargs))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    size = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * size), others, gradients)


def test_what_passes_by_rejoins_as_it_was(parts):
    """By hand: of each picture alone, its chosen tokens as a picture of their own through the stretch."""
    model, params, tokens, t, batch = parts
    keys = jax.random.split(jax.random.key(3), ROWS)
    # Two stacks of parameters lie in it.
    route = Route(0.5, 2, 4, path_drop=0.5)
    found = chosen(route, parts, keys)
    taken = np.asarray(found.taken)
    assert taken.any() and not taken.all()
    output, tapped = forward(model, params, tokens, t, route=route, route_keys=keys, tap=3, **batch)
    bound = model.bind({"params": params})
    positions, rest = batch["positions"], {name: value for name, value in batch.items() if name != "positions"}
    x, cond = bound.embed_tokens(tokens, positions), bound.embed_conditions(t, **rest)
    x = routing._run(model, params, x, cond, 0, 2)
    rows = []
    for row in range(ROWS):
        own = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], cond)
        here = x[row : row + 1]
        at = np.asarray(found.order)[row, : int(found.count[row])]
        at = (at[:, None] * 4 + np.arange(4)).ravel()
        own = own.replace(num_tokens=np.int32([len(at)]))
        there = routing._run(model, params, here[:, at], own, 2, 3)
        there = routing._run(model, params, there, own, 3, 4)
        np.testing.assert_allclose(tapped.features[row, : len(at)], there[0], rtol=0, atol=2e-5)
        there = routing._run(model, params, there, own, 4, 5)
        rows.append(here.at[0, at].set(there[0]) if taken[row] else here)
    x = routing._run(model, params, jnp.concatenate(rows), cond, 5, 6)
    wanted = bound.predict(x, cond)
    for row, real in enumerate(batch["num_tokens"]):
        np.testing.assert_allclose(output.eps[row, :real], wanted.eps[row, :real], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(tapped.num_tokens, found.count * 4)


def gradient_flops(**settings):
    return Program(tiny(**settings), None).flops(training_batch(tiny(**settings)))


def test_work_falls_as_the_arithmetic_says():
    size = {
        "model.depth": 4,
        "model.hidden_size": 192,
        "model.resolution": 256,
        "model.kv_compress_ratio": 1,
        "data.batch_size": 1,
    }
    plain = gradient_flops(**size)
    # Of a block by the tokens that go through it; two for a multiply-add, three passes.
    tokens, width, text = 256, 192, 4

    def block(n):
        products = n * (4 + 8) * width**2 + 2 * n * n * width
        return 6 * (products + 2 * n * width**2 + 2 * text * width**2 + 2 * n * text * width)

    found = gradient_flops(**size, **{"model.route.ratio": 0.75, "model.route.first": 1, "model.route.last": 3})
    saved = 3 * (block(tokens) - block(tokens // 4))
    assert plain - found == pytest.approx(saved, rel=0.03)
    assert found == pytest.approx(plain - saved, rel=0.03) and found < 0.75 * plain


def test_no_key_is_used_twice():
    keys = jax.random.split(jax.random.key(0), ROWS)
    given = with_keys(lambda trained, held, batch, keys: (batch, {}), "adapter_keys", "route_keys")
    found, _ = given(None, None, {}, keys)
    drawn = [keys, *found.values()]
    drawn += [jax.vmap(jax.random.split)(each).ravel() for each in drawn]
    data = np.concatenate([jax.random.key_data(each) for each in drawn])
    assert len(np.unique(data, axis=0)) == len(data) == 9 * ROWS


def test_a_ratio_of_0_is_no_route():
    """So that it is bit-identical to none: the adapter and the objective are those of a config that knows of none."""
    config = tiny(**{"model.route.until": 0.5})
    model = build_model(config)
    adapter = build_adapter(config, model)
    assert adapter.model.__qualname__ == apply_of(model).__qualname__
    assert build_objective(config, adapter).__qualname__ == descend(lambda: None).__qualname__
    assert len(phases(config)) == 1


def test_a_route_for_a_share_of_the_steps():
    config = tiny(**{"model.route.ratio": 0.5, "model.route.until": 0.7, "train.num_steps": 9})
    assert build_route(phases(config)[1].config) is None
    # SPRINT's last stage sees all tokens, and still drops the path.
    config.model.route.form = "sprint"
    assert build_route(phases(config)[1].config) == Route(0.0, 2, 3, 0.1)
    check_config(phases(config)[1].config)
    (begin, routed_config), (done, rest) = phases(config)
    assert (begin, routed_config.model.route.ratio, done, rest.model.route.ratio) == (0, 0.5, 6, 0.0)
    assert config.model.route.ratio == 0.5


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"objective.kind": "consistency"}, "config.model.route.ratio = 0.5: .*teacher that sees all tokens"),
        ({"adapter.kind": "controlnet", "adapter.controlnet.num_copies": 1}, "copies follow the control of every"),
        ({"model.route.last": 6}, "config.model.route.last = 6: must be one of the 6 blocks"),
        ({"model.route.first": 5}, "config.model.route.last = -3: .* behind config.model.route.first = 5"),
        ({"model.route.ratio": 0.05}, "config.model.route.ratio = 0.05: lets none of the 16 2x2 blocks"),
        ({"mesh.context": 16}, "config.mesh.context = 16: must divide the 8 keys that config.model.route.ratio"),
        ({"model.route.ratio": 1.0}, r"config.model.route.ratio = 1.0: must lie in \[0, 0.95\]"),
    ],
    ids=str,
)
def test_what_cannot_be_routed_is_refused(settings, said):
    config = tiny(**{"model.route.ratio": 0.5} | settings)
    with pytest.raises(InputError, match=said):
        check_config(config)
    config.model.route.ratio = 0.5 if "model.route.ratio" in settings else 0.0
    if "mesh.context" not in settings:
        check_config(config)


def test_the_path_is_dropped_by_what_can_learn_it():
    config = tiny(**{"sample.guidance": "path_drop", "model.route.ratio": 0.5})
    with pytest.raises(InputError, match=r"config.sample.guidance = 'path_drop': .*config.model.route.form='sprint'"):
        check_config(config)
    config.model.route.update({"form": "sprint", "ratio": 0.0})
    check_config(config)
    config.objective.kind = "consistency"
    with pytest.raises(InputError, match=r"config.model.route.form = 'sprint': .*set it to 'tread'"):
        check_config(config)
