"""The T5 v1.1 encoder equals transformers' T5EncoderModel, from whose names it is converted without a gap.

Weights are random, and larger than T5's own initialisation where that would hide an error: position biases of std 1
(not 1/√d), logits of std 2, norm scales that differ. An error is the largest difference over the std of the reference's
output, over all rows: padded ones too, since the reference defines them and Σ's null caption reads them.
"""

import collections
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AbstractMesh
from models.t5_cases import (
    TINY,
    XXL_CONFIG,
    abstract_params,
    captions,
    converted,
    error,
    numpy_state,
    reference_features,
    reference_model,
    run,
    shapes,
    tiny,
)
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from pixart_jax.conversion.names.t5 import convert_t5
from pixart_jax.devices.sharding import tree_shardings
from pixart_jax.errors import InputError
from pixart_jax.models.t5 import XXL, T5Encoder, encoder_from_config, relative_position_buckets

# --- Agreement with PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [captions(37, 11, 11, 4, 1), captions(37, 300, 300, 170)],
    ids=["short", "far buckets"],
)
def test_equals_pytorch(inputs):
    ours, params, theirs = tiny()
    assert error(run(ours, params, *inputs), reference_features(theirs, *inputs)) < 1e-5


def test_no_length_means_that_every_token_is_real():
    ours, params, theirs = tiny()
    token_ids, text_length = captions(37, 11, 11, 11)
    assert error(run(ours, params, token_ids), reference_features(theirs, token_ids, text_length)) < 1e-5


def test_equals_pytorch_at_the_xxl_width():
    """Two layers of the real size; the sums over 4,096 and 10,240 products are where float32 would drift."""
    config = T5Config(**(XXL_CONFIG | {"num_layers": 2, "vocab_size": 50}))
    inputs = captions(50, 24, 24, 9)
    theirs = reference_model(config)
    expected, state = reference_features(theirs, *inputs), numpy_state(theirs)
    del theirs
    ours = T5Encoder(**(XXL | {"num_layers": 2, "vocab_size": 50}))
    params = converted(ours, state)
    assert error(run(ours, params, *inputs), expected) < 1e-4


@pytest.mark.parametrize("num_buckets,max_distance", [(32, 128), (8, 20), (4, 2)])
def test_buckets_equal_pytorchs(num_buckets, max_distance):
    offset = torch.arange(400) - torch.arange(400)[:, None]
    expected = T5Attention._relative_position_bucket(offset, True, num_buckets, max_distance).numpy()
    buckets = relative_position_buckets(400, num_buckets, max_distance)
    np.testing.assert_array_equal(buckets, expected)
    # The bucket of "0 to the right" cannot occur.
    assert set(buckets.flat) == set(range(num_buckets)) - {num_buckets // 2}


# --- Padding, compilation, ids ----------------------------------------------------------------------------------------


def test_padding_is_never_read():
    ours, params, _ = tiny()
    token_ids, text_length = captions(37, 11, 11, 4, 1)
    real = np.arange(11) < text_length[:, None]
    features = run(ours, params, token_ids, text_length)
    other = run(ours, params, np.where(real, token_ids, 5), text_length)
    np.testing.assert_array_equal(other[real], features[real])
    assert (other[~real] != features[~real]).all(-1).all(), "the padding did not change anything at all"


def test_one_program_for_all_lengths():
    ours, params, _ = tiny()
    traces = []

    @jax.jit
    def encode(params, token_ids, text_length):
        traces.append(None)
        return ours.apply({"params": params}, token_ids, text_length)

    features = [encode(params, *captions(37, 11, *lengths)) for lengths in [(11, 4), (1, 7)]]
    assert len(traces) == 1 and not np.array_equal(*features)


def test_ids_of_another_vocabulary_show():
    ours, params, _ = tiny()
    features = run(ours, params, np.array([[3, 36], [3, 37]], np.int32))
    assert np.isfinite(features[0]).all() and np.isnan(features[1]).all()


# --- Number formats ---------------------------------------------------------------------------------------------------


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(param_dtype):
    """Matrix products are bfloat16, norms, softmax and the residual stream float32, whatever the parameters are."""
    ours, params, _ = tiny()
    inputs = captions(37, 11, 11, 4, 1)
    exact = run(ours, params, *inputs)
    params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    model = ours.clone(dtype=jnp.bfloat16)

    jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, *inputs))(params).jaxpr
    operands = {}
    for equation in equations(jaxpr):
        inputs_of = {variable.aval.dtype for variable in equation.invars if hasattr(variable.aval, "dtype")}
        operands.setdefault(equation.primitive.name, set()).update(inputs_of)
    for statistic in ("reduce_sum", "reduce_max", "exp", "rsqrt"):
        assert operands[statistic] == {jnp.dtype(jnp.float32)}, statistic
    assert operands["dot_general"] == {jnp.dtype(jnp.bfloat16)}
    (scan,) = (equation for equation in equations(jaxpr) if equation.primitive.name == "scan")
    assert [v.aval.dtype for v in scan.outvars if v.aval.shape == (3, 11, 20)] == [jnp.dtype(jnp.float32)]

    features = run(model, params, *inputs)
    assert features.dtype == np.float32
    assert 0 < (features - exact).std() < 0.02 * exact.std()


def test_bfloat16_parameters_are_exact_in_float32():
    """Reading bfloat16 parameters loses nothing: the products are those of the same values in float32."""
    ours, params, _ = tiny()
    inputs = captions(37, 11, 11, 4, 1)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    np.testing.assert_array_equal(run(ours, stored, *inputs), run(ours, widened, *inputs))


# --- Conversion -------------------------------------------------------------------------------------------------------


def convert_tiny(state_dict):
    ours, _, _ = tiny()
    return convert_t5(state_dict, ours.num_layers, shapes(ours))


def test_every_parameter_is_filled_with_its_shape():
    flat = convert_tiny(numpy_state(tiny()[2]))
    assert {path: array.shape for path, array in flat.items()} == shapes(tiny()[0])
    assert {array.dtype for array in flat.values()} == {np.dtype(np.float32)}


def test_a_whole_model_converts_as_its_encoder_does():
    state = numpy_state(reference_model(TINY, T5ForConditionalGeneration))
    decoder = {name for name in state if name.startswith("decoder.") or name == "lm_head.weight"}
    encoder = {name: array for name, array in state.items() if name not in decoder}
    assert len(decoder) > len(encoder) > 10
    jax.tree.map(np.testing.assert_array_equal, convert_tiny(state), convert_tiny(encoder))


def test_the_decoder_is_never_read():
    """Nor any other array more than once: a file may hold 45 GB."""
    reads = []

    class Checkpoint(collections.UserDict):
        def __getitem__(self, name):
            reads.append(name)
            return super().__getitem__(name)

    state = numpy_state(reference_model(TINY, T5ForConditionalGeneration))
    del state["encoder.embed_tokens.weight"]
    convert_tiny(Checkpoint(state))
    encoder = [name for name in state if name.startswith(("shared.", "encoder."))]
    assert sorted(reads) == sorted(encoder)


def test_either_name_of_the_embedding_table_is_enough():
    state = numpy_state(tiny()[2])
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= state.keys()
    for missing in ("shared.weight", "encoder.embed_tokens.weight"):
        flat = convert_tiny({name: array for name, array in state.items() if name != missing})
        np.testing.assert_array_equal(flat["shared/embedding_table"], state["shared.weight"])


@pytest.mark.parametrize(
    "change,messages",
    [
        (lambda s: s.pop("encoder.final_layer_norm.weight"), ["not filled: final_layer_norm/scale (20,)"]),
        (
            lambda s: (s.pop("shared.weight"), s.pop("encoder.embed_tokens.weight")),
            ["not filled: shared/embedding_table"],
        ),
        (
            lambda s: s.pop("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            ["not filled: relative_attention_bias/embedding_table (32, 3)"],
        ),
        (
            lambda s: s.pop("encoder.block.2.layer.1.DenseReluDense.wi_1.weight"),
            ["incomplete: block/DenseReluDense/wi_1/kernel is there only for blocks [0, 1]"],
        ),
        (lambda s: s.update({"mystery.weight": np.zeros(3)}), ["no parameter takes: mystery.weight"]),
        (
            lambda s: s.update({"encoder.block.3.layer.0.layer_norm.weight": np.zeros(20)}),
            ["no parameter takes: encoder.block.3.layer.0.layer_norm.weight"],
        ),
        (
            lambda s: s.update({"encoder.block.0.layer.0.SelfAttention.q.bias": np.zeros(18)}),
            ["no parameter takes: encoder.block.0.layer.0.SelfAttention.q.bias"],
        ),
        (  # as in UMT5, where every block has its own
            lambda s: s.update({"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": np.zeros(1)}),
            ["no parameter takes: encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"],
        ),
        (  # as in T5 1.0, whose MLP is not gated
            lambda s: s.update({"encoder.block.0.layer.1.DenseReluDense.wi.weight": np.zeros((28, 20))}),
            ["no parameter takes: encoder.block.0.layer.1.DenseReluDense.wi.weight"],
        ),
        (
            lambda s: s.update(
                {f"encoder.block.{i}.layer.0.SelfAttention.o.weight": np.zeros((18, 20)) for i in range(3)}
            ),
            ["wrong shape: block/SelfAttention/o/kernel is (3, 20, 18), the model has (3, 18, 20)"],
        ),
        (
            lambda s: s.update({"encoder.embed_tokens.weight": s["shared.weight"] + 1}),
            ["shared.weight and encoder.embed_tokens.weight differ"],
        ),
        (
            lambda s: (s.pop("encoder.final_layer_norm.weight"), s.update(odd=np.zeros(1))),
            ["final_layer_norm/scale", "takes: odd"],
        ),
    ],
)
def test_everything_that_does_not_fit_is_listed(change, messages):
    state = numpy_state(tiny()[2])
    change(state)
    with pytest.raises(InputError) as error:
        convert_tiny(state)
    assert all(message in str(error.value) for message in messages), error.value


# --- Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [XXL_CONFIG, T5Config(**XXL_CONFIG).to_dict()], ids=["published", "written by transformers 5"]
)
def test_xxl_config(config):
    assert encoder_from_config(config, dtype=jnp.bfloat16) == T5Encoder(**XXL, dtype=jnp.bfloat16)


def test_every_field_is_read_from_the_config():
    changes = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    config = T5Config(**(TINY.to_dict() | changes))
    ours, theirs, inputs = encoder_from_config(config.to_dict()), reference_model(config), captions(37, 30, 30, 12)
    params = converted(ours, numpy_state(theirs))
    assert error(run(ours, params, *inputs), reference_features(theirs, *inputs)) < 1e-5


@pytest.mark.parametrize(
    "changes,messages",
    [
        ({"model_type": "umt5"}, ["model_type is 'umt5', T5 v1.1 has 't5'"]),
        ({"feed_forward_proj": "relu"}, ["feed_forward_proj is 'relu', T5 v1.1 has 'gated-gelu'"]),
        ({"feed_forward_proj": None}, ["feed_forward_proj is 'relu'"]),
        ({"dense_act_fn": "gelu"}, ["dense_act_fn is 'gelu', T5 v1.1 has 'gelu_new'"]),
        ({"is_gated_act": False}, ["is_gated_act is False"]),
        ({"d_kv": None}, ["d_kv is None, not a positive integer"]),
        ({"num_layers": 0, "d_ff": "10240"}, ["num_layers is 0", "d_ff is '10240'"]),
        ({"relative_attention_num_buckets": 2}, ["relative_attention_num_buckets is 2"]),
        ({"relative_attention_max_distance": 8}, ["relative_attention_max_distance 8"]),
        ({"layer_norm_epsilon": 0.0}, ["layer_norm_epsilon is 0.0"]),
    ],
    ids=str,
)
def test_what_is_not_t5_v1_1_is_refused(changes, messages):
    """None stands for a missing key."""
    config = {name: value for name, value in (XXL_CONFIG | changes).items() if value is not None}
    with pytest.raises(InputError) as error:
        encoder_from_config(config, path="text_encoder/config.json")
    assert str(error.value).startswith("text_encoder/config.json: not the config of a T5 v1.1 encoder")
    assert all(message in str(error.value) for message in messages), error.value


# --- The whole XXL encoder, without allocating it ---------------------------------------------------------------------


def test_xxl_has_as_many_parameters_as_pytorchs():
    with torch.device("meta"):
        theirs = T5EncoderModel(T5Config(**XXL_CONFIG))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(T5Encoder(**XXL))))
    assert count == sum(weight.numel() for weight in theirs.parameters()) == 4_762_310_656


def test_xxl_is_an_eighth_on_each_of_eight_devices():
    """Every parameter has a partition rule; what stays whole (the norms) is less than a thousandth."""
    params = abstract_params(T5Encoder(**XXL))
    shardings = tree_shardings(params, AbstractMesh((2, 8), ("data", "fsdp")))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    on_device = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), params, shardings)
    assert total / 8 <= sum(jax.tree.leaves(on_device)) < total / 8 * 1.001
