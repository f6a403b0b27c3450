"""LoRA's arithmetic: where it begins, what it trains, its dropout, and several of them."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seam_parts import flat
from tiny_run import tiny_config

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.adapters.layers import REFERENCE_TARGETS, by_pattern, is_target, layers_of
from pixart_jax.adapters.lora import A, B, Lora, LoraSpec
from pixart_jax.config import build_adapter, build_objective, check_config
from pixart_jax.errors import InputError
from pixart_jax.models.params import apply_of, init_params, parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.objectives.objective import Held

MODEL = PixArt(hidden_size=24, depth=2, num_heads=2, text_dim=8, max_text_tokens=5, remat="full")
SPEC = LoraSpec(rank=3, alpha=6.0, rank_pattern=((r"transformer_blocks\.1\.attn1\.to_q", 2),))
TOKENS = jax.random.normal(jax.random.key(1), (2, 6, 16))
CONDITIONS = {
    "positions": np.zeros((2, 6, 2), np.float32),
    "num_tokens": np.full(2, 6, np.int32),
    "text": jax.random.normal(jax.random.key(2), (2, 5, 8)),
}


@functools.cache
def base():
    """Noise on all, as some begin at zero and would hide what comes before them."""
    shapes = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    drawn = [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def call(apply, *params, **more):
    return jax.jit(lambda *params: apply(*params, TOKENS, jnp.array([10.0, 500.0]), **CONDITIONS, **more).eps)(*params)


def halves(**changes):
    adapter = Lora(apply_of(MODEL), LoraSpec(**{"rank": 3, "alpha": 6.0, "rank_pattern": SPEC.rank_pattern} | changes))
    return adapter, *adapter.split(base(), jax.random.key(7))


def moved(trained, seed=9):
    """What training might have made of it: nothing is zero that has a gradient."""
    leaves, structure = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("dora", [False, True])
def test_it_begins_as_the_base(dora):
    adapter, trained, frozen = halves(dora=dora)
    expected = call(apply_of(MODEL), base())
    tolerance = 1e-5 if dora else 0
    np.testing.assert_allclose(call(adapter.apply, trained, frozen), expected, rtol=tolerance, atol=tolerance)
    assert np.abs(call(adapter.apply, moved(trained), frozen) - expected).max() > 1e-2
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained))


def test_what_is_frozen_is_in_the_dtype_of_its_products():
    adapter = Lora(apply_of(MODEL.clone(dtype=jnp.bfloat16)), SPEC, jnp.bfloat16)
    trained, frozen = adapter.split(base(), jax.random.key(7))
    dtypes = {path: leaf.dtype for path, leaf in flat(frozen).items() if not path.startswith("lora/")}
    assert {dtypes[path] for path in dtypes if path.endswith("kernel")} == {jnp.dtype(jnp.bfloat16)}
    assert dtypes["blocks_0/scale_shift_table"] == jnp.float32 and trained["x_embedder"][A].dtype == jnp.float32
    # Nothing is lost by it: the products round their kernels anyway. XLA may leave out other roundings.
    expected = call(apply_of(MODEL.clone(dtype=jnp.bfloat16)), base())
    np.testing.assert_allclose(call(adapter.apply, trained, frozen), expected, atol=0.02 * np.abs(expected).max())


def test_ranks_and_first_values():
    trained = halves(rank=4, rank_pattern=((r"attn1\.to_q", 2), ("proj_out", 3)))[1]
    query = trained["blocks_0"]["attn"]["qkv"]["q"]
    assert query[A].shape == (2, 24, 2) and trained["final_layer"]["linear"][A].shape == (24, 3)
    value = np.asarray(trained["blocks_0"]["mlp"]["fc2"][A])
    assert np.abs(value).max() <= 96**-0.5 and np.abs(value).max() > 0.9 * 96**-0.5
    assert not np.allclose(value[0], value[1])
    assert all(not np.any(leaf) for path, leaf in flat(trained).items() if path.endswith(B))
    gaussian = np.asarray(halves(rank=4, init="gaussian")[1]["y_embedder"]["y_proj_fc1"][A])
    assert 0.15 < gaussian.std() < 0.35
    # Of lower rank in one block of a stack: zeros, which stay zeros.
    adapter, trained, frozen = halves()
    query = trained["blocks_0"]["attn"]["qkv"]["q"]
    assert np.any(query[A][0, :, 2]) and not np.any(query[A][1, :, 2])
    loss = jax.jit(jax.grad(lambda trained: jnp.sum(jnp.square(call(adapter.apply, trained, frozen)))))
    grads = loss(trained)
    assert not np.any(np.asarray(grads["blocks_0"]["attn"]["qkv"]["q"][B])[1, 2])
    assert np.any(np.asarray(grads["blocks_0"]["attn"]["qkv"]["q"][B])[0, 2])


def test_only_the_chosen_layers_are_adapted():
    trained = halves(pattern=r"transformer_blocks\.1\.attn2\.to_(k|v)")[1]
    assert {path.rpartition("/")[0] for path in flat(trained)} == {
        "blocks_0/cross_attn/kv_linear/k",
        "blocks_0/cross_attn/kv_linear/v",
    }
    adapter, trained, frozen = halves(pattern=r"transformer_blocks\.1\.attn2\.to_(k|v)", dora=True)
    grads = jax.grad(lambda trained: jnp.sum(call(adapter.apply, trained, frozen)))(moved(trained))
    # The other block of the stack has a place, and nothing is learnt there.
    for path, grad in flat(grads).items():
        assert np.any(grad[1]) and not np.any(grad[0]), path


def test_two_adapters_add_up_over_whatever_lies_below():
    _, trained, frozen = halves()
    first, second = moved(trained, 1), moved(trained, 2)
    held = frozen.pop("lora")
    whole = [unflat(flat(tree) | flat(held)) for tree in (first, second)]
    outer = Lora(lambda params, *args, **conditions: Lora(apply_of(MODEL)).apply(whole[0], params, *args, **conditions))
    both = call(outer.apply, whole[1], base())
    kernels = flat(base())
    for layer in layers_of({path: leaf.shape for path, leaf in kernels.items()}):
        path = f"{layer.module}/kernel"
        for tree in whole:
            own = flat(tree)
            added = jnp.einsum("...ir,...ro->...io", own[f"{layer.path}/{A}"], own[f"{layer.path}/{B}"])
            scale = own[f"{layer.path}/lora_scale"]
            columns = slice(layer.part * layer.outputs, (layer.part + 1) * layer.outputs)
            scaled = added * jnp.reshape(scale, (*scale.shape, 1, 1))
            kernels[path] = kernels[path].at[..., columns].add(scaled)
    expected = call(apply_of(MODEL), unflat(kernels))
    np.testing.assert_allclose(both, expected, rtol=2e-4, atol=2e-4)
    # Over an adapted run, whose parameters are in two halves.
    below = Lora(apply_of(MODEL), SPEC)
    bound = lambda params, *args, **more: below.apply(params.trained, params.frozen, *args, **more)  # noqa: E731
    run = Parameters(first, {**base(), "lora": held})
    np.testing.assert_allclose(call(Lora(bound).apply, whole[1], run), both, rtol=1e-5, atol=1e-5)


def unflat(tree):
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def test_dropout_is_of_the_sample_and_of_training_alone():
    adapter, trained, frozen = halves(dropout=0.5, dora=True)
    trained = moved(trained)
    salts = [leaf for path, leaf in flat(frozen["lora"]).items() if path.endswith("lora_salt")]
    assert len(np.unique(np.concatenate([np.ravel(salt) for salt in salts]))) == sum(np.size(salt) for salt in salts)
    keys = jax.random.split(jax.random.key(3), 2)
    without = call(adapter.apply, trained, frozen)
    dropped = call(adapter.apply, trained, frozen, adapter_keys=keys)
    other = call(adapter.apply, trained, frozen, adapter_keys=keys.at[1].set(jax.random.key(11)))
    assert np.abs(dropped - without).max() > 1e-3
    np.testing.assert_allclose(other[0], dropped[0], rtol=1e-5, atol=1e-5)
    assert np.abs(other[1] - dropped[1]).max() > 1e-3


def test_dropout_keeps_the_mean():
    """Of the last layer alone, beyond which nothing is curved."""
    alone, trained, frozen = halves(dropout=0.5, pattern="proj_out")
    trained = moved(trained)
    drawn = jax.jit(
        jax.vmap(
            lambda key: (
                alone.apply(
                    trained,
                    frozen,
                    TOKENS,
                    jnp.array([10.0, 500.0]),
                    **CONDITIONS,
                    adapter_keys=jax.random.split(key, 2),
                ).eps
            )
        )
    )(jax.random.split(jax.random.key(4), 2000))
    expected = call(alone.apply, trained, frozen)
    assert np.abs(drawn.mean(0) - expected).max() < 0.15 * np.abs(drawn - expected).max()


def test_the_objective_draws_what_it_draws_without_dropout():
    """Its timesteps and noise: before B has moved, the loss is the same with dropout and without."""
    losses = []
    for dropout in (0.0, 0.5):
        config = tiny_config("unused")
        config.model.micro_condition = False
        config.init_from, config.adapter.kind, config.adapter.lora.dropout = "unused", "lora", dropout
        adapter = build_adapter(config, MODEL)
        trained, frozen = adapter.split(base(), jax.random.key(7))
        batch = {"tokens": TOKENS, **CONDITIONS}
        gradients = jax.jit(build_objective(config, adapter))
        losses.append(gradients(trained, Held(frozen, trained), batch, jax.random.split(jax.random.key(0), 2)))
    assert float(losses[0][1]["loss"]) == pytest.approx(float(losses[1][1]["loss"]), rel=1e-6)
    grads = [np.asarray(found["blocks_0"]["mlp"]["fc2"][B]) for found, _ in losses]
    assert np.abs(grads[0] - grads[1]).max() > 1e-3 * np.abs(grads[0]).max()


def test_layers_are_chosen_as_peft_does():
    names = [name for layer in layers_of(parameter_shapes(MODEL)) for name in layer.names]
    assert len(names) == len(set(names)) == 2 * 10 + 7
    assert all(is_target(name, REFERENCE_TARGETS) for name in names)
    assert [name for name in names if is_target(name, ("proj",))] == [
        *(f"transformer_blocks.{i}.ff.net.0.proj" for i in range(2)),
        "pos_embed.proj",
    ]
    assert not is_target("proj_out", ("out",)) and is_target("a.b", (), r"a\.b") and not is_target("xa.b", (), r"a\.b")
    assert by_pattern({"attn1.to_q": 2, "to_q": 3}, "transformer_blocks.0.attn1.to_q") == 2
    assert by_pattern({"blocks.0.attn1.to_q": 2}, "transformer_blocks.0.attn1.to_q") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "("}, r"adapter.lora.pattern: '\(' is no regular expression"),
        ({"pattern": "attn1"}, "fits no linear layer"),
        ({"targets": "to_q,to_x"}, "'to_x' fits no linear layer"),
        ({"rank_pattern": "to_q"}, "must be like"),
        ({"rank_pattern": "to_q=1.5"}, "is no rank"),
        ({"alpha_pattern": "to_q=-1"}, "positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    config = tiny_config("unused")
    config.init_from, config.adapter.kind = "unused", "lora"
    check_config(config)
    config.adapter.lora.update(settings)
    with pytest.raises(InputError, match=message):
        check_config(config)
    config.init_from = ""
    with pytest.raises(InputError, match=r"config\.init_from"):
        check_config(config)
