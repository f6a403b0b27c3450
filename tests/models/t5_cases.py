"""T5 encoders of transformers with random weights, and ours that hold the same."""

import functools
import math

import flax
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import torch
from transformers import T5Config, T5EncoderModel

from pixart_jax.conversion.names.t5 import convert_t5
from pixart_jax.models.t5 import encoder_from_config

# Odd on purpose: heads that do not fill d_model, and an epsilon large enough to matter.
TINY = T5Config(
    vocab_size=37,
    d_model=20,
    d_kv=6,
    num_heads=3,
    d_ff=28,
    num_layers=3,
    layer_norm_epsilon=1e-2,
    feed_forward_proj="gated-gelu",
)
# What google/t5-v1_1-xxl's config.json says, and no more: it leaves relative_attention_max_distance to the default.
XXL_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}


def reference_model(config, kind=T5EncoderModel):
    """PyTorch's model with random weights, without the time and memory that its own initialisation takes."""
    with torch.device("meta"):
        model = kind(config)
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            mean, std = 1.0, 0.3
        elif name.endswith((".relative_attention_bias.weight", "shared.weight")):
            mean, std = 0.0, 1.0
        elif name.endswith(".q.weight"):
            mean, std = 0.0, 2 * (config.d_model * config.d_kv) ** -0.5
        else:
            mean, std = 0.0, weight.shape[1] ** -0.5
        # Uniform because that is drawn several times faster than a normal, of which the full width needs 400 million.
        weight.data.uniform_(mean - math.sqrt(3) * std, mean + math.sqrt(3) * std, generator=generator)
    return model


def reference_features(model, token_ids, text_length):
    mask = np.arange(token_ids.shape[1]) < text_length[:, None]
    with torch.inference_mode():
        out = model(input_ids=torch.tensor(token_ids), attention_mask=torch.tensor(mask.astype(np.int64)))
    return out.last_hidden_state.numpy()


def shapes(model):
    flat = flax.traverse_util.flatten_dict(abstract_params(model), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def abstract_params(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]


def converted(model, state_dict):
    """The model's parameters. Empties `state_dict`, so that the full width is held twice, not three times."""
    flat = convert_t5(state_dict, model.num_layers, shapes(model))
    state_dict.clear()
    return flax.traverse_util.unflatten_dict({path: jnp.array(flat.pop(path)) for path in list(flat)}, sep="/")


def numpy_state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def captions(vocab_size, length, *text_length):
    """Random ids, and zeros (T5's pad) behind each caption's length."""
    ids = np.random.default_rng(0).integers(1, vocab_size, (len(text_length), length), dtype=np.int32)
    text_length = np.array(text_length, np.int32)
    return np.where(np.arange(length) < text_length[:, None], ids, 0).astype(np.int32), text_length


@functools.cache
def tiny():
    """(ours, our parameters, PyTorch's) of the tiny configuration."""
    theirs = reference_model(TINY)
    ours = encoder_from_config(TINY.to_dict())
    return ours, converted(ours, numpy_state(theirs)), theirs


@functools.cache
def compiled(model):
    return jax.jit(model.apply)


def run(model, params, *inputs):
    return np.asarray(compiled(model)({"params": params}, *inputs))


def error(features, expected):
    assert features.shape == expected.shape and features.dtype == np.float32
    return np.abs(features - expected).max() / expected.std()
