"""A PixArt made from the golden DiT equals its class-free output where promised, and nothing fits better elsewhere."""

import subprocess
import sys

import flax
import jax
import numpy as np
import pytest
from golden_cases import (
    abstract_params,
    build_model,
    load_arrays,
    load_config,
    load_params,
    load_state_dict,
    model_inputs,
    to_nchw,
)

from pixart_jax.errors import InputError
from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import SIZES, PixArt
from pixart_jax.warm_start.reparameterize import (
    TABLE_TIMESTEPS,
    ModulationError,
    format_error_table,
    modulation_error,
    reparameterize,
)

TIMESTEPS = [0, 100, 500, 900]
CONFIG = load_config("dit")
DIT = build_model(CONFIG)
FIELDS = {name: CONFIG[name] for name in ("hidden_size", "depth", "num_heads")} | {"text_dim": 16, "max_text_tokens": 6}
TARGET = PixArt(**FIELDS)
apply = jax.jit(TARGET.apply)


def flatten(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(params):
    return flax.traverse_util.unflatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def dit():
    return load_params(DIT, load_state_dict("dit"))


@pytest.fixture(scope="module")
def target():
    return jax.jit(lambda key: init_params(TARGET, key))(jax.random.key(1))


@pytest.fixture(scope="module")
def inputs():
    """(tokens, conditions) of the golden case, with captions of three lengths, the last of them dropped."""
    tokens, conditions = model_inputs(CONFIG, load_arrays("dit")["in/x"])
    text = np.random.default_rng(0).normal(size=(len(tokens), 6, 16)).astype(np.float32)
    captions = {"text": text, "text_length": np.array([6, 1, 4], np.int32), "text_drop": np.array([False, False, True])}
    return tokens, conditions | captions


def output(params, inputs, t):
    tokens, conditions = inputs
    parts = apply({"params": unflatten(params)}, tokens, np.full(len(tokens), t), **conditions)
    return np.concatenate([to_nchw(part, CONFIG, (0, 0, 8, 8)) for part in parts], axis=1)


def dit_modulation(dit, *, null=True, t=range(1000)):
    """By the model's own embedders: (c [T, D], the blocks' modulations [L, T, 6D], the final layer's [T, 2D])."""
    table = dit["y_embedder"]["embedding_table"]
    if not null:
        dit = dit | {"y_embedder": {"embedding_table": np.zeros_like(table)}}
    t = np.asarray(t)
    label = np.full(len(t), len(table) - 1)
    c = np.float64(DIT.apply({"params": dit}, t, label=label, method="embed_conditions").t)
    s = np.float64(jax.nn.silu(c))
    stack, final = dit["blocks_0"]["adaLN_modulation"], dit["final_layer"]["adaLN_modulation"]
    blocks = s @ np.float64(stack["kernel"]) + stack["bias"][:, None]
    return c, blocks, s @ np.float64(final["kernel"]) + final["bias"]


def pixart_modulation(params, t=range(1000)):
    """The same of a PixArt."""
    t, params = np.asarray(t), unflatten(params)
    conditions = TARGET.apply({"params": params}, t, text=np.zeros((len(t), 1, 16)), method="embed_conditions")
    tables, final = params["blocks_0"]["scale_shift_table"], params["final_layer"]["scale_shift_table"]
    c, shared = np.float64(conditions.t), np.float64(conditions.t0)
    return c, shared + tables.reshape(len(tables), 1, -1), (c[:, None] + final).reshape(len(t), -1)


@pytest.mark.parametrize("t", TIMESTEPS)
def test_equals_the_dit_without_a_class_at_its_timestep_whatever_the_caption(t, dit, target, inputs):
    params = reparameterize(dit, target, method=f"t{t}")
    expected = load_arrays("dit")[f"out/uncond_t{t}"]
    np.testing.assert_allclose(output(params, inputs, t), expected, rtol=0, atol=2e-5)


def test_differs_from_the_dit_at_other_timesteps(dit, target, inputs):
    params = reparameterize(dit, target, method="t500")
    for t in (0, 100, 900):
        assert np.abs(output(params, inputs, t) - load_arrays("dit")[f"out/uncond_t{t}"]).max() > 1e-3


def test_modulation_is_exact_at_its_timestep_only(dit, target):
    for t in TIMESTEPS:
        error = modulation_error(dit, reparameterize(dit, target, method=f"t{t}"), timesteps=TIMESTEPS)
        exact = np.array(TIMESTEPS) == t
        for values in (error.blocks, error.final):
            assert values[exact] < 1e-6
            assert np.all(values[~exact] > 1e-3)


@pytest.mark.parametrize("unconditional", ["null", "none"])
@pytest.mark.parametrize("method", ["t500", "mean"])
def test_modulation_error_is_that_of_the_models(method, unconditional, dit, target):
    # Of either u at parameters made for "null": what is measured is the difference, not what should have come out.
    params = reparameterize(dit, target, method=method)
    error = modulation_error(dit, params, unconditional=unconditional)
    _, expected, expected_final = dit_modulation(dit, null=unconditional == "null", t=TABLE_TIMESTEPS)
    _, found, final = pixart_modulation(params, t=TABLE_TIMESTEPS)
    blocks = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    np.testing.assert_array_equal(error.timesteps, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999])
    np.testing.assert_allclose(error.blocks, np.sqrt(np.mean(blocks**2, axis=0)), rtol=0, atol=1e-5)
    final = np.linalg.norm(final - expected_final, axis=-1) / np.linalg.norm(expected_final, axis=-1)
    np.testing.assert_allclose(error.final, final, rtol=0, atol=1e-5)


def test_the_mean_is_the_least_squares_fit_over_all_timesteps(dit, target):
    c, expected, expected_final = dit_modulation(dit)
    depth, steps, _ = expected.shape

    # A numerical solver finds nothing better: unknown are W̄ and, per block, b̄ + E_l.
    s = np.tile(np.asarray(jax.nn.silu(c)), (depth, 1))
    features = np.concatenate([s, np.repeat(np.eye(depth), steps, axis=0)], axis=1)
    flat = expected.reshape(depth * steps, -1)
    least = np.sum((flat - features @ np.linalg.lstsq(features, flat)[0]) ** 2)
    least_final = np.sum((expected_final - np.tile(c, 2) - np.mean(expected_final - np.tile(c, 2), axis=0)) ** 2)

    sums = {}
    for method in ("mean", "t500"):
        _, found, final = pixart_modulation(reparameterize(dit, target, method=method))
        sums[method] = np.sum((found - expected) ** 2), np.sum((final - expected_final) ** 2)
        if method == "mean":
            # The gradients with respect to the tables, to which the sums are blind so close to the minimum.
            np.testing.assert_allclose(np.mean(found - expected, axis=1), 0, rtol=0, atol=1e-6)
            np.testing.assert_allclose(np.mean(final - expected_final, axis=0), 0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(sums["mean"], (least, least_final), rtol=1e-5)
    assert sums["t500"][0] > 1.02 * least and sums["t500"][1] > 1.02 * least_final


@pytest.mark.parametrize("part", ["t_block/kernel", "t_block/bias", "blocks_0/scale_shift_table"])
def test_any_step_away_from_the_mean_fits_worse(part, dit, target):
    _, expected, _ = dit_modulation(dit)
    params = reparameterize(dit, target, method="mean")
    least = np.sum((pixart_modulation(params)[1] - expected) ** 2)
    rng = np.random.default_rng(2)
    for _ in range(5):
        step = 1e-2 * rng.normal(size=params[part].shape).astype(np.float32)
        moved = params | {part: params[part] + step}
        assert np.sum((pixart_modulation(moved)[1] - expected) ** 2) > least * (1 + 1e-5)


def test_the_shared_mlp_is_the_closest_at_every_timestep(dit, target):
    """What is left at any t sums to zero over the blocks, and that is the gradient with respect to what they share."""
    _, expected, _ = dit_modulation(dit)
    for method in ("t500", "mean"):
        residual = pixart_modulation(reparameterize(dit, target, method=method))[1] - expected
        assert np.abs(residual.sum(axis=0)).max() < 1e-4 * np.abs(residual).max()


def test_the_null_class_is_in_the_timestep_vector_at_all_timesteps(dit, target):
    c, _, _ = dit_modulation(dit)
    found, _, _ = pixart_modulation(reparameterize(dit, target))
    np.testing.assert_allclose(found, c, rtol=0, atol=1e-6)


def test_without_any_class_vector(dit, target, inputs):
    params = reparameterize(dit, target, unconditional="none")
    found, expected = pixart_modulation(params, [500]), dit_modulation(dit, null=False, t=[500])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(params["t_embedder/mlp_2/bias"], dit["t_embedder"]["mlp_2"]["bias"])
    assert np.abs(output(params, inputs, 500) - load_arrays("dit")["out/uncond_t500"]).max() > 1e-3


def test_the_rest_is_copied_from_the_dit_or_the_target(dit, target):
    params = reparameterize(dit, target)
    dit, target = flatten(dit), flatten(target)
    assert list(params) == list(target)
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}
    computed = {f"t_block/{name}" for name in ("kernel", "bias")} | {"t_embedder/mlp_2/bias"}
    computed |= {f"{layer}/scale_shift_table" for layer in ("blocks_0", "final_layer")}
    for path in params.keys() - computed:
        new = path.startswith(("y_embedder/", "blocks_0/cross_attn/"))
        np.testing.assert_array_equal(params[path], (target if new else dit)[path], err_msg=path)


def test_flat_and_nested_trees_are_the_same(dit, target):
    nested, flat = reparameterize(dit, target), reparameterize(flatten(dit), flatten(target))
    for path, array in nested.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)


def test_size_xl_2():
    # Zeros of stride zero: gigabytes of parameters in four bytes.
    dit, target = (
        {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flatten(abstract_params(model)).items()}
        for model in (PixArt(**SIZES["XL/2"], num_classes=1000, adaln="full"), PixArt(**SIZES["XL/2"]))
    )
    params = reparameterize(dit, target)
    assert {path: array.shape for path, array in params.items()} == {path: leaf.shape for path, leaf in target.items()}


@pytest.mark.parametrize(
    "fields,messages",
    [
        ({"depth": 4}, ["wrong shape: blocks_0/mlp/fc1/bias is (3, 96) by the DiT, (4, 96) in the target"]),
        ({"depth": 4}, ["wrong shape: blocks_0/scale_shift_table is (3, 6, 24) by the DiT, (4, 6, 24) in the target"]),
        (
            {"hidden_size": 48},
            [
                "wrong shape: t_block/kernel is (24, 144) by the DiT, (48, 288) in the target",
                "wrong shape: t_block/bias is (144,) by the DiT, (288,) in the target",
                "wrong shape: final_layer/scale_shift_table is (2, 24) by the DiT, (2, 48) in the target",
            ],
        ),
        ({"learn_sigma": False}, ["wrong shape: final_layer/linear/bias is (32,) by the DiT, (16,) in the target"]),
        (
            {"micro_condition": True},
            ["the DiT has nothing for: csize_embedder/mlp_0/kernel", "the DiT has nothing for: ar_embedder/mlp_2/bias"],
        ),
        ({"qk_norm": True}, ["the DiT has nothing for: blocks_0/attn/q_norm/scale"]),
        ({"kv_compress": (1, 2, 2)}, ["the DiT has nothing for: blocks_1/attn/sr_kernel", "is (3, 6, 24)"]),
        ({"adaln": "full"}, ["the target is not a caption", "t_block/kernel"]),
        ({"num_classes": 10}, ["the target is not a caption", "y_embedder/y_embedding"]),
    ],
)
def test_a_target_that_does_not_fit(fields, messages, dit):
    shapes = flatten(abstract_params(PixArt(**FIELDS | fields)))
    with pytest.raises(InputError) as error:
        reparameterize(dit, {path: np.zeros(leaf.shape) for path, leaf in shapes.items()})
    assert all(message in str(error.value) for message in messages), error.value


def test_parameters_that_do_not_fit(dit, target):
    with pytest.raises(InputError, match=r"(?s)not a class-conditional DiT.*lacks.*blocks_0/adaLN_modulation/kernel"):
        reparameterize(target, target)
    with pytest.raises(InputError, match="the target does not take: mystery"):
        reparameterize(flatten(dit) | {"mystery": np.zeros(1)}, target)
    trained = flatten(target) | {"blocks_0/cross_attn/proj/kernel": np.full((3, 24, 24), 1e-3, np.float32)}
    with pytest.raises(InputError, match="not zero in the target: blocks_0/cross_attn/proj/kernel"):
        reparameterize(dit, trained)
    # Which does not touch the modulation.
    params = reparameterize(dit, target)
    np.testing.assert_array_equal(
        modulation_error(dit, params | {path: trained[path] for path in trained if "cross_attn" in path}),
        modulation_error(dit, params),
    )


@pytest.mark.parametrize("method", ["500", "t1000", "t", "t-1", "t5.5", "t500\n", "Mean"])
def test_methods_that_do_not_exist(method, dit, target):
    with pytest.raises(InputError, match="method="):
        reparameterize(dit, target, method=method)


def test_unconditional_vectors_that_do_not_exist(dit, target):
    for call in (reparameterize, lambda dit, target, **u: modulation_error(dit, reparameterize(dit, target), **u)):
        with pytest.raises(InputError, match="unconditional='zero': give one of null, none"):
            call(dit, target, unconditional="zero")


def test_error_table():
    t = np.array([0, 999])
    errors = {
        "t500": ModulationError(t, np.array([0.5, 0.25]), np.array([1.5, 0])),
        "mean": ModulationError(t, np.array([0.125, 0.0625]), np.array([10.0, 1.0])),
    }
    assert format_error_table(errors).splitlines() == [
        "                t500                mean",
        "     t      blocks     final    blocks     final",
        "     0      50.00%   150.00%    12.50%  1000.00%",
        "   999      25.00%     0.00%     6.25%   100.00%",
    ]


def test_needs_no_jax():
    code = "import sys, pixart_jax.warm_start.reparameterize; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
