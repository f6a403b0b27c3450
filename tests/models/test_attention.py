"""Every implementation of attention gives what the plain one gives, and that one what the formula says."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.interpreters import partial_eval
from jax.sharding import Mesh
from test_pixart import TINY, equations, loss_of, random_params
from tiny_run import run_python

from pixart_jax.errors import InputError
from pixart_jax.models import blockwise_attention as blockwise
from pixart_jax.models import splash_attention as splash
from pixart_jax.models.attention import AttentionSpec, attention, choose, cudnn_attention
from pixart_jax.models.remat import REMAT_POLICIES

HEADS, HEAD_DIM = 2, 12

# Queries, keys, how many of the keys are real.
CASES = {
    "padded images": (200, 200, [200, 131, 7]),
    "padded text": (130, 30, [1, 30, 17]),
    # Keys of several blocks, of which the kernel for the gradients gives a part of dq each.
    "many keys": (130, 400, [400, 300, 1]),
    "compressed keys, of which a whole block is padding": (192, 150, [150, 96, 48]),
    "nothing padded": (60, 70, None),
    "filled up to whole blocks": (300, 650, None),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks even of the short sequences that tests can afford."""
    monkeypatch.setattr(blockwise, "BLOCK", 48)
    for name, size in {"MAX_QUERIES": 256, "MAX_KEYS": 512, "MAX_AT_ONCE": 256}.items():
        monkeypatch.setattr(splash, name, size)


def make_inputs(queries, keys, dtype=np.float32):
    """q, k, v and the output's gradient."""
    rng = np.random.default_rng(0)
    shapes = [(3, length, HEADS, HEAD_DIM) for length in (queries, keys, keys, queries)]
    return [jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in shapes]


def lengths_of(lengths):
    return None if lengths is None else np.int32(lengths)


# What "blockwise" is on a CPU for sequences that are too long for a test.
APART = "blockwise, one head after the other"


def run(name, inputs, lengths):
    """The output and the gradients of q, k and v."""
    q, k, v, d_out = inputs

    def attend(q, k, v, lengths):
        if name == APART:
            return blockwise.blockwise_attention(q, k, v, lengths, apart=True)
        return attention(q, k, v, lengths, spec=AttentionSpec(name))

    @jax.jit
    def outputs(q, k, v, lengths):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, lengths), q, k, v)
        return out, *pull(d_out)

    return outputs(q, k, v, lengths_of(lengths))


def assert_close(got, wanted, tolerance):
    for part, expected in zip(got, wanted, strict=True):
        assert part.dtype == expected.dtype
        part, expected = (np.asarray(x, np.float32) for x in (part, expected))
        np.testing.assert_allclose(part, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_plain_attention_is_the_formula(case):
    queries, keys, lengths = CASES[case]
    q, k, v, _ = inputs = make_inputs(queries, keys)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k, dtype=np.float64) / np.sqrt(HEAD_DIM)
    if lengths:
        logits[np.broadcast_to((np.arange(keys) >= np.array(lengths)[:, None])[:, None, None], logits.shape)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(run("plain", inputs, lengths)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["blockwise", APART, "splash"])
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_attention(name, case):
    """Outputs, those of padded queries too, and gradients."""
    queries, keys, lengths = CASES[case]
    inputs = make_inputs(queries, keys)
    assert_close(run(name, inputs, lengths), run("plain", inputs, lengths), 1e-5)


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_equals_plain_attention_in_bfloat16(name):
    """As near to float32's numbers as plain attention in bfloat16 is, give or take a half."""
    queries, keys, lengths = CASES["padded images"]
    exact = run("plain", make_inputs(queries, keys, np.float32), lengths)
    inputs = make_inputs(queries, keys, jnp.bfloat16)

    def errors(name, inputs):
        outputs = run(name, inputs, lengths)
        assert all(part.dtype == jnp.bfloat16 for part in outputs)
        return [np.sqrt(np.mean(np.square(part - wanted))) for part, wanted in zip(outputs, exact, strict=True)]

    assert all(np.array(errors(name, inputs)) < 1.5 * np.array(errors("plain", inputs)))


@pytest.mark.parametrize("name", ["blockwise", APART])
def test_one_block_in_bfloat16(name, monkeypatch):
    """A loop of one turn becomes none, and what XLA makes of its products is something else."""
    monkeypatch.undo()
    got, wanted = (run(n, make_inputs(60, 70, d), None) for n, d in ((name, jnp.bfloat16), ("plain", np.float32)))
    for part, expected in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.float32(part), expected, rtol=0, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["plain", "blockwise", APART, "splash"])
def test_padding_is_neither_seen_nor_moved_nor_nan(name):
    """Keys that do not exist may hold anything and get no gradient; a sample without any key stays finite."""
    q, k, v, d_out = make_inputs(60, 70)
    lengths = [70, 0, 50]
    wild = [x.at[2, 50:].set(1e4) for x in (k, v)]
    out, dq, dk, dv = run(name, (q, *wild, d_out), lengths)
    assert all(np.isfinite(part).all() for part in (out, dq, dk, dv))
    assert not dk[2, 50:].any() and not dv[2, 50:].any()
    np.testing.assert_allclose(out[2], run(name, (q, k, v, d_out), lengths)[0][2], rtol=1e-6)


@pytest.mark.parametrize(
    ("queries", "keys", "itemsize", "expected"),
    [
        # Block of queries, of keys, and keys at once: text, 512 px, 1024 px, compressed, 2K; Σ's text.
        (1024, 128, 2, (1024, 128, 128)),
        (1024, 1024, 2, (1024, 1024, 1024)),
        (4096, 4096, 2, (512, 4096, 512)),
        (4096, 1024, 2, (1024, 1024, 1024)),
        (16384, 16384, 2, (512, 4096, 512)),
        (4096, 384, 2, (2048, 384, 384)),
        # Twice the bytes, half the keys.
        (4096, 4096, 4, (512, 2048, 512)),
        # Filled up to lengths that large blocks divide: 640 px, lengths of a caller's own, and 2880 px.
        (1600, 1600, 2, (896, 1792, 896)),
        (3968, 3968, 2, (512, 4096, 512)),
        (3840, 3840, 2, (384, 3840, 768)),
        (14848, 14848, 2, (512, 3072, 1024)),
        (16256, 16256, 2, (512, 4096, 512)),
        (32400, 32400, 2, (512, 4096, 512)),
    ],
)
def test_blocks_of_splash_attention_fit_the_vector_memory(queries, keys, itemsize, expected, monkeypatch):
    monkeypatch.undo()
    assert splash.blocks_by_rule(queries, keys, itemsize) == expected


def test_no_length_is_cut_into_small_blocks_or_filled_up_by_much(monkeypatch):
    monkeypatch.undo()
    for length in range(128, 17000, 128):
        blocks = splash.blocks_by_rule(length, length, 2)
        queries, keys = blocks.fill(length, length)
        assert blocks.keys % blocks.at_once == 0 and blocks.queries * blocks.keys <= 512 * 4096
        assert blocks.queries >= min(384, length) and blocks.keys >= min(1792, length)
        assert queries <= 1.1 * length and keys <= 1.12 * length
        # What fills a length up has the same blocks, or they would not be found in the table.
        assert splash.blocks_by_rule(queries, keys, 2) == blocks


def test_blocks_of_the_table_are_its_chips(monkeypatch):
    monkeypatch.setattr(splash, "_table", lambda: {"v5e": {"1024x512": [256, 512, 128]}})
    for lengths in ((1024, 512), (1000, 500)):
        assert splash.find_blocks("v5e", *lengths, 2) == (256, 512, 128)
    for other in (("v6e", 1024, 512, 2), ("v5e", 1024, 512, 4), ("v5e", 1024, 1024, 2)):
        assert splash.find_blocks(*other) == splash.blocks_by_rule(*other[1:])


def test_gradients_take_fewer_keys_at_once_where_the_blocks_are_longest(monkeypatch):
    monkeypatch.undo()
    sizes = {chip: splash._block_sizes(splash.blocks_by_rule(8192, 16384, 2), chip) for chip in ("v5e", "v5p", "v6e")}
    assert [each.block_kv_compute for each in sizes.values()] == [512, 512, 512]
    assert [each.block_kv_dkv_compute for each in sizes.values()] == [256, 256, 512]
    assert splash._block_sizes(splash.blocks_by_rule(1024, 1024, 2), "v5e").block_kv_dkv_compute == 1024
    monkeypatch.setattr(splash, "MAX_KEYS", 512)
    inputs = make_inputs(128, 512)
    attend = functools.partial(splash.splash_attention, chip="v5e", blocks=splash.Blocks(128, 512, 512), interpret=True)
    got, pull = jax.vjp(attend, *inputs[:3])
    assert_close([got, *pull(inputs[3])], run("plain", inputs, None), 1e-5)


def test_a_whole_model_equals_the_plain_one():
    """Loss and gradients, with key/value compression, padded images and padded text. The blockwise one is tried on a
    mesh, below."""
    model = TINY.clone(depth=2, kv_compress=(1, 2))
    params = random_params(model)

    def loss_and_gradients(name):
        return jax.jit(jax.value_and_grad(loss_of(model.clone(attention=AttentionSpec(name)))))(params)

    got, plain = loss_and_gradients("splash"), loss_and_gradients("plain")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, plain)


def test_blockwise_attention_bounds_memory(monkeypatch):
    """The compiler's scratch memory of the forward and backward pass: no array of all logits, plain has several."""
    monkeypatch.undo()
    x = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    logits = 2 * 4096**2 * 4

    def scratch(name):
        def loss(q, k, v, lengths):
            return jnp.square(attention(q, k, v, lengths, spec=AttentionSpec(name))).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, lengths).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch("plain") > logits
    assert scratch("blockwise") < logits / 8


def test_sharded_attention_equals_unsharded():
    """On 8 simulated devices: samples, heads and queries split, in every implementation that runs on a CPU."""
    printed = run_python(pathlib.Path(__file__).parent / "attention_on_devices.py", devices=8)
    assert printed == "as on one device\n"


# --- Choice -----------------------------------------------------------------------------------------------------------

CPU, TPU = (types.SimpleNamespace(platform=name, device_kind=name) for name in ("cpu", "tpu"))
HOPPER, VOLTA, AMD = (types.SimpleNamespace(platform="gpu", compute_capability=c) for c in ("9.0", "7.0", "gfx942"))


@pytest.mark.parametrize(
    ("device", "dtype", "queries", "keys", "head_dim", "wanted"),
    [
        (CPU, jnp.float32, 64, 64, 72, "plain"),
        (CPU, jnp.float32, 256, 256, 72, "blockwise"),
        (TPU, jnp.bfloat16, 4096, 4096, 72, "splash"),
        (TPU, jnp.bfloat16, 4096, 120, 72, "splash"),
        (TPU, jnp.bfloat16, 64, 64, 72, "plain"),
        (HOPPER, jnp.bfloat16, 4096, 4096, 72, "cudnn"),
        (HOPPER, jnp.bfloat16, 64, 64, 72, "cudnn"),
        (HOPPER, jnp.float32, 1024, 1024, 72, "plain"),
        (HOPPER, jnp.float32, 4096, 4096, 72, "blockwise"),
        (HOPPER, jnp.bfloat16, 256, 256, 12, "plain"),
        (HOPPER, jnp.bfloat16, 4096, 4096, 160, "blockwise"),
        (VOLTA, jnp.float16, 4096, 4096, 72, "blockwise"),
        (AMD, jnp.bfloat16, 256, 256, 72, "plain"),
    ],
)
def test_auto_takes_what_suits_platform_and_shapes(device, dtype, queries, keys, head_dim, wanted):
    q, k = (jax.ShapeDtypeStruct((2, length, 16, head_dim), dtype) for length in (queries, keys))
    assert choose(device, q, k) == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xla", "attention = 'xla': must be one of auto, plain, blockwise, cudnn, splash"),
        ("cudnn", "attention = 'cudnn': needs an NVIDIA GPU .* here are float32 heads of 12 on cpu"),
    ],
)
def test_what_cannot_run_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        run(name, make_inputs(8, 8), None)


def test_splash_is_refused_on_a_gpu():
    mesh = types.SimpleNamespace(devices=np.array([HOPPER]), size=1)
    with pytest.raises(InputError, match=r"attention = 'splash': needs a TPU; here .* on gpu"):
        attention(*make_inputs(8, 8)[:3], spec=AttentionSpec("splash", mesh))


@pytest.mark.parametrize("sharded", [False, True])
def test_cudnn_attention_lowers_to_flash_attention_with_lengths(monkeypatch, sharded):
    """Forward and backward. JAX asks for cuDNN's version, which a machine without it cannot answer."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k = (jax.ShapeDtypeStruct((2, length, 16, 72), jnp.bfloat16) for length in (4096, 120))

    def loss(q, k, v, lengths):
        return cudnn_attention(q, k, v, lengths).astype(jnp.float32).sum()

    if sharded:
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        loss = jax.shard_map(loss, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, jax.ShapeDtypeStruct((2,), jnp.int32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert r"mask_type\22: \22PADDING\22" in text


# --- Remat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "implementation,primitive,forward",
    [("splash", "pallas_call", 1), ("blockwise", "dot_general", 2), ("cudnn", "dot_product_attention_fwd_wrapper", 1)],
)
def test_attention_without_logits_runs_forward_once(monkeypatch, implementation, primitive, forward):
    """With "dots" and "attention" as often as without remat, with "full" once more."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    device = HOPPER if implementation == "cudnn" else CPU
    spec = AttentionSpec(implementation, types.SimpleNamespace(devices=np.array([device]), size=1))
    x = jax.ShapeDtypeStruct((1, 128, 2, 16), jnp.bfloat16)

    def count(policy):
        def function(x):
            return attention(x, x, x, spec=spec).astype(jnp.float32).sum()

        if policy != "none":
            function = jax.checkpoint(function, policy=REMAT_POLICIES[policy])
        # Without what no result needs: the compiler drops it too.
        needed, _ = partial_eval.dce_jaxpr(jax.make_jaxpr(jax.value_and_grad(function))(x).jaxpr, [True, True])
        found = equations(needed)
        return sum(equation.primitive.name == primitive for equation in found)

    counts = {policy: count(policy) for policy in REMAT_POLICIES}
    assert counts["none"] == counts["dots"] == counts["attention"] == counts["full"] - forward, counts


@pytest.mark.parametrize(("policy", "unroll", "told"), [("full", 1, False), ("full", 4, True), ("dots", 4, False)])
def test_without_a_loop_the_compiler_is_told_to_compute_again(policy, unroll, told):
    jaxpr = jax.make_jaxpr(loss_of(TINY.clone(remat=policy, scan_unroll=unroll)))(random_params(TINY)).jaxpr
    found = {equation.params["prevent_cse"] for equation in equations(jaxpr) if "prevent_cse" in equation.params}
    assert found == {told}
