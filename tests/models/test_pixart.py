"""What the golden cases do not show of the model: how it starts, its size, its number formats, its gradients."""

import functools
import math

import flax
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.models.pixart import SIZES, Block, PixArt
from pixart_jax.models.remat import REMAT_POLICIES

B, N, L, CLASSES = 3, 16, 6, 5
TINY = PixArt(hidden_size=24, depth=4, num_heads=2, text_dim=16, max_text_tokens=8)
NUM_TOKENS, TEXT_LENGTH = np.array([16, 8, 12], np.int32), np.array([6, 1, 4], np.int32)


def make_inputs(model, seed=0):
    """(tokens, t) and the conditions that the model takes, of B samples padded to different lengths."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    conditions = {
        "positions": np.tile(np.stack(np.divmod(np.arange(N), 4), -1).astype(np.float32), (B, 1, 1)),
        "num_tokens": NUM_TOKENS,
    }
    if model.num_classes:
        conditions["label"] = np.arange(B) % model.num_classes
    else:
        conditions |= {"text": normal(B, L, model.text_dim), "text_length": TEXT_LENGTH}
    if model.micro_condition:
        conditions |= {"image_size": np.full((B, 2), 64, np.float32), "aspect_ratio": np.ones((B, 1), np.float32)}
    return (normal(B, N, model.patch_size**2 * model.latent_channels), np.array([3, 500, 999], np.float32)), conditions


def init(model):
    arguments, conditions = make_inputs(model)
    return jax.jit(model.init)(jax.random.key(0), *arguments, **conditions)["params"]


@functools.cache
def random_params(model):
    """Fresh parameters plus noise: what is initialised to zero hides whatever comes before it."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), init(model))


@functools.cache
def compiled(model):
    return jax.jit(model.apply)


def run(model, params, arguments=None, **changes):
    """The model's output on `make_inputs`, with some of them changed."""
    default, conditions = make_inputs(model)
    return compiled(model)({"params": params}, *(arguments or default), **(conditions | changes))


def loss_of(model, **changes):
    """A scalar of the real tokens' outputs as a function of the parameters."""
    arguments, conditions = make_inputs(model)
    weights = np.arange(N)[None, :, None] < NUM_TOKENS[:, None, None]

    def loss(params):
        output = model.apply({"params": params}, *arguments, **(conditions | changes))
        return sum((jnp.square(part - 1) * weights).mean() for part in output)

    return loss


def paths(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


def assert_same(output, expected, atol=2e-6):
    for part, wanted in zip(output, expected, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=0, atol=atol)


def differs(output, expected):
    return np.abs(np.asarray(output.eps) - np.asarray(expected.eps)).max() > 1e-3


# --- Initialisation (spec §1.9) ---------------------------------------------------------------------------------------

STATISTICS = PixArt(
    hidden_size=96,
    depth=3,
    num_heads=4,
    text_dim=128,
    max_text_tokens=64,
    micro_condition=True,
    kv_compress=(1, 1, 2),
    qk_norm=True,
)


@pytest.fixture(scope="module")
def fresh():
    return paths(init(STATISTICS))


def layers(fresh, suffix):
    """The array of each block, taken out of the stacks."""
    stacks = [array for path, array in fresh.items() if path.startswith("blocks_") and path.endswith(suffix)]
    assert stacks, suffix
    return [layer for stack in stacks for layer in stack]


@pytest.mark.parametrize(
    ("suffix", "fan_in", "fan_out"),
    [
        ("/attn/qkv/kernel", 96, 288),
        ("/attn/proj/kernel", 96, 96),
        ("/cross_attn/q_linear/kernel", 96, 96),
        ("/cross_attn/kv_linear/kernel", 96, 192),
        ("/mlp/fc1/kernel", 96, 384),
        ("/mlp/fc2/kernel", 384, 96),
    ],
)
def test_xavier_is_over_each_blocks_own_fused_matrix(fresh, suffix, fan_in, fan_out):
    bound = math.sqrt(6 / (fan_in + fan_out))
    kernels = layers(fresh, suffix)
    assert len(kernels) == STATISTICS.depth
    for kernel in kernels:
        assert kernel.shape == (fan_in, fan_out)
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.03)
    assert all((kernels[0] != other).any() for other in kernels[1:]), "blocks share their random numbers"


def test_patch_embedding_keeps_pytorchs_bias(fresh):
    kernel, bias = fresh["x_embedder/kernel"], fresh["x_embedder/bias"]
    bound = math.sqrt(6 / (16 + 96))
    assert kernel.shape == (16, 96) and 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.05)
    assert 0.9 * 0.25 < bias.max() <= 0.25 and -0.25 <= bias.min() < 0.9 * -0.25


@pytest.mark.parametrize(
    "path",
    [
        *(f"{name}_embedder/mlp_{i}" for name in ("t", "csize", "ar") for i in (0, 2)),
        "t_block",
        "y_embedder/y_proj_fc1",
        "y_embedder/y_proj_fc2",
    ],
)
def test_condition_embedders_start_at_std_002(fresh, path):
    kernel = fresh[f"{path}/kernel"]
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)
    assert np.abs(kernel).max() > 2.5 * 0.02, "not a normal distribution"
    assert not fresh[f"{path}/bias"].any()


def test_tables_and_null_caption_scale_with_their_width(fresh):
    for table in [*layers(fresh, "/scale_shift_table"), fresh["final_layer/scale_shift_table"]]:
        np.testing.assert_allclose(table.std(), 1 / math.sqrt(96), rtol=0.15)
    assert fresh["y_embedder/y_embedding"].shape == (64, 128)
    np.testing.assert_allclose(fresh["y_embedder/y_embedding"].std(), 1 / math.sqrt(128), rtol=0.03)


def test_what_starts_at_zero_and_at_one(fresh):
    zero = ["final_layer/linear/kernel"] + [path for path in fresh if path.endswith("cross_attn/proj/kernel")]
    zero += [path for path in fresh if path.endswith("bias") and path != "x_embedder/bias"]
    assert not any(fresh[path].any() for path in zero)
    ones = [path for path in fresh if path.endswith("scale")]
    assert len(ones) == 5  # q_norm and k_norm in two stacks, the compression's norm in one
    assert all((fresh[path] == 1).all() for path in ones)
    (kernel,) = layers(fresh, "sr_kernel")
    assert kernel.shape == (4, 96) and (kernel == 0.25).all()


def test_full_adaln_starts_as_the_identity():
    fresh = paths(init(TINY.clone(adaln="full")))
    modulation = [array for path, array in fresh.items() if "adaLN_modulation" in path]
    assert len(modulation) == 4 and not any(array.any() for array in modulation)


# --- Size and names (spec §1.10) --------------------------------------------------------------------------------------

XL = PixArt(**SIZES["XL/2"])


@pytest.mark.parametrize(
    ("model", "trainable"),
    [
        (XL, 610_856_096),
        (XL.clone(micro_condition=True), 611_349_152),
        (XL.clone(max_text_tokens=300), 610_856_096),
        (XL.clone(max_text_tokens=300, kv_compress=(1,) * 14 + (2,) * 14), 610_968_992),
        (XL.clone(max_text_tokens=300, qk_norm=True), 610_985_120),
        (XL.clone(num_classes=1000, adaln="full"), 674_834_720),
    ],
    ids=["alpha", "alpha-ms", "sigma", "sigma-kv-compress", "sigma-qk-norm", "dit"],
)
def test_parameter_count(model, trainable):
    shapes = paths(jax.eval_shape(lambda: init(model)))
    null_text = shapes.pop("y_embedder/y_embedding", None)
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == trainable
    assert model.num_classes or null_text.shape == (model.max_text_tokens, 4096)


def names(model):
    """Parameter paths without the last part, of the first block and of what is outside the blocks."""
    return {path.rpartition("/")[0] for path in jax.eval_shape(lambda: paths(init(model)))}


def test_full_adaln_with_captions():
    model = TINY.clone(adaln="full")
    added, removed = names(model) - names(TINY), names(TINY) - names(model)
    assert added == {"blocks_0/adaLN_modulation", "final_layer/adaLN_modulation"}
    # The parents of the two scale_shift_tables go, and the shared modulation.
    assert removed == {"t_block", "blocks_0", "final_layer"}
    params = random_params(model)
    output = run(model, params)
    assert differs(run(model, params, text=make_inputs(model, seed=1)[1]["text"]), output)
    assert differs(run(model, params, (make_inputs(model)[0][0], np.full(B, 7.0))), output)


def test_class_conditions_with_adaln_single():
    model = TINY.clone(num_classes=CLASSES)
    gone = {path for path in names(TINY) if "cross_attn" in path or path.startswith("y_embedder/")}
    assert names(TINY) - names(model) == gone and names(model) - names(TINY) == set()
    params = random_params(model)
    assert params["y_embedder"]["embedding_table"].shape == (CLASSES + 1, model.hidden_size)
    output = run(model, params)
    assert differs(run(model, params, label=np.array([1, 2, 3])), output)
    # Dropping a label is choosing the table's last row.
    dropped = run(model, params, text_drop=np.array([False, True, True]))
    assert differs(dropped, output)
    assert_same(dropped, run(model, params, label=np.array([0, CLASSES, CLASSES])), atol=0)


def test_without_learned_variance():
    model = TINY.clone(learn_sigma=False)
    output = run(model, random_params(model))
    assert output.eps.shape == (B, N, 16) and output.v is None


# --- Padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_compress", [(), (1, 1, 2, 2)], ids=["plain", "kv-compress"])
def test_padding_is_never_read(kv_compress):
    """Bit for bit: neither padded tokens, their positions nor padded text reach a real token."""
    model = TINY.clone(kv_compress=kv_compress, qk_norm=bool(kv_compress))
    params, ((tokens, t), conditions) = random_params(model), make_inputs(model)
    padded = np.arange(N)[None, :, None] >= NUM_TOKENS[:, None, None]
    padded_text = np.arange(L)[None, :, None] >= TEXT_LENGTH[:, None, None]
    other = run(
        model,
        params,
        (np.where(padded, 50.0, tokens), t),
        positions=np.where(padded, -9.0, conditions["positions"]),
        text=np.where(padded_text, 50.0, conditions["text"]),
    )
    output = run(model, params)
    assert differs(other, output), "the padding did not change anything at all"
    for part, wanted in zip(other, output, strict=True):
        np.testing.assert_array_equal(np.where(padded, 0, part), np.where(padded, 0, wanted))


@pytest.mark.parametrize("kv_compress", [(), (1, 1, 2, 2)], ids=["plain", "kv-compress"])
def test_no_number_of_tokens_means_all(kv_compress):
    model = TINY.clone(kv_compress=kv_compress)
    params = random_params(model)
    assert_same(run(model, params, num_tokens=None), run(model, params, num_tokens=np.full(B, N, np.int32)), atol=1e-6)


# --- Scan and remat ---------------------------------------------------------------------------------------------------


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def count_products(model, params):
    jaxpr = jax.make_jaxpr(jax.grad(loss_of(model)))(params).jaxpr
    return sum(equation.primitive.name == "dot_general" for equation in equations(jaxpr))


@pytest.fixture(scope="module")
def loss_and_gradient():
    return jax.jit(jax.value_and_grad(loss_of(TINY)))(random_params(TINY))


@pytest.mark.parametrize("policy", sorted(REMAT_POLICIES.keys() - {"none"}))
def test_remat_changes_no_number(policy, loss_and_gradient):
    remat = jax.jit(jax.value_and_grad(loss_of(TINY.clone(remat=policy))))(random_params(TINY))
    np.testing.assert_allclose(remat[0], loss_and_gradient[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), remat[1], loss_and_gradient[1])


def test_remat_computes_again_what_its_policy_says():
    """ "full" repeats every matrix product of a block, "attention" not those of weights and values, "dots" only plain
    attention's logits."""
    products = {policy: count_products(TINY.clone(remat=policy), random_params(TINY)) for policy in REMAT_POLICIES}
    assert products["none"] + 2 == products["dots"], products
    assert products["dots"] < products["attention"] == products["full"] - 2, products


@pytest.mark.parametrize("unroll", [3, 4])
def test_unrolling_changes_no_number(unroll):
    """Neither the whole loop nor a number of blocks that does not divide the depth."""
    params = random_params(TINY)
    assert_same(run(TINY.clone(scan_unroll=unroll), params), run(TINY, params))


def test_scan_is_a_loop_over_the_blocks():
    """Stack i of a segment is block first + i, and block_residuals[i] enters block i, in every segment."""
    model = TINY.clone(kv_compress=(1, 2, 2, 1))
    assert model.segments() == [(0, 1, 1), (1, 2, 2), (3, 1, 1)]
    params, ((tokens, t), conditions) = random_params(model), make_inputs(model)
    residuals = np.random.default_rng(2).standard_normal((4, B, N, 24)).astype(np.float32)

    @jax.jit
    def loop(params, positions, **conditions):
        bound = model.bind({"params": params})
        x, cond = bound.embed_tokens(tokens, positions), bound.embed_conditions(t, **conditions)
        for residual, (first, i, ratio) in zip(residuals, [(0, 0, 1), (1, 0, 2), (1, 1, 2), (3, 0, 1)], strict=True):
            block = {"params": jax.tree.map(lambda stack: stack[i], params[f"blocks_{first}"])}  # noqa: B023
            x, _ = Block(**model.block_fields(ratio)).apply(block, x, residual, cond)
        out = bound.final_layer(x, cond.t).reshape(B, N, 4, 8)
        return out[..., :4].reshape(B, N, 16), out[..., 4:].reshape(B, N, 16)

    output = run(model, params, block_residuals=residuals)
    assert differs(output, run(model, params))
    assert_same(output, loop(params, **conditions), atol=1e-5)


# --- The null caption -------------------------------------------------------------------------------------------------


def test_dropped_text_is_the_null_caption_at_the_captions_length():
    params, (_, conditions) = random_params(TINY), make_inputs(TINY)
    drop = np.array([True, False, True])
    null = np.asarray(params["y_embedder"]["y_embedding"])[:L]
    explicit = run(TINY, params, text=np.where(drop[:, None, None], null, conditions["text"]))
    dropped = run(TINY, params, text_drop=drop)
    assert differs(dropped, run(TINY, params))
    assert_same(dropped, explicit, atol=0)


def test_null_caption_gets_no_gradient():
    gradient = paths(jax.jit(jax.grad(loss_of(TINY, text_drop=np.ones(B, bool))))(random_params(TINY)))
    assert not gradient.pop("y_embedder/y_embedding").any()
    assert all(leaf.any() for leaf in gradient.values()), "every other parameter learns, even when all text is dropped"


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(B, 9, 16), (B, L, 17)], ids=["too long", "too wide"])
def test_text_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=rf"{shape[1]}, {shape[2]}\).*max_text_tokens=8, text_dim=16"):
        run(TINY, random_params(TINY), text=np.zeros(shape, np.float32))


def test_kv_compress_of_the_wrong_length():
    with pytest.raises(ValueError, match="kv_compress has 3 entries, the model 4 blocks"):
        init(TINY.clone(kv_compress=(1, 1, 2)))
