"""The encoder of T5 v1.1, whose last hidden states are PixArt's text features.

Sources: T5 (Raffel et al. 2020) §2.1 for the simplified LayerNorm and the shared relative position biases; Shazeer
2020, "GLU Variants Improve Transformer", for v1.1's gated GELU; Hugging Face transformers' T5EncoderModel for the
names, the attention without 1/√d and what a config.json says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.models.layers import Dtype


class Sizes(TypedDict):
    """What T5s differ in: fields of `T5Encoder`, as transformers calls them."""

    vocab_size: int
    d_model: int
    d_kv: int
    num_heads: int
    d_ff: int
    num_layers: int


# The fields of google/t5-v1_1-xxl, the encoder of every released PixArt: 4.76 billion parameters.
XXL: Sizes = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 24}


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Which of the learned biases holds between each query (row) and key (column): i32[length, length].

    The first half of the buckets is for keys at or before the query, the second for keys after it. In each half, half
    of the buckets hold one distance each; the others grow geometrically up to `max_distance`, beyond which all
    distances share the last.
    """
    # float64 by numpy, because the powers of two among the distances are bucket edges, which the logarithm must hit.
    offset = np.arange(length) - np.arange(length)[:, None]
    distance = np.abs(offset)
    half = num_buckets // 2
    exact = half // 2
    share = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (share * (half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (offset > 0)).astype(np.int32)


class Embedding(nn.Module):
    """Rows of a table: i32[...] → [..., features]. An index past the end gives NaN: another vocabulary's ids show."""

    num_embeddings: int
    features: int

    @nn.compact
    def __call__(self, ids):
        init = nn.initializers.normal(1.0)
        table = self.param("embedding_table", init, (self.num_embeddings, self.features), jnp.float32)
        return jnp.take(table, ids, axis=0, mode="fill")


class RMSNorm(nn.Module):
    """T5's LayerNorm: neither the mean is subtracted nor a bias added. Computed in float32, returned in `dtype`."""

    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class SelfAttention(nn.Module):
    """Norm and attention: x [B, L, D], bias f32[1, heads, L, L] added to the logits, text_length i32[B] or None."""

    num_heads: int
    d_kv: int
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x, bias, text_length):
        hidden = RMSNorm(self.epsilon, self.dtype, name="layer_norm")(x)
        q, k, v = (
            einops.rearrange(
                nn.Dense(self.num_heads * self.d_kv, use_bias=False, dtype=self.dtype, name=name)(hidden),
                "b l (h d) -> b l h d",
                h=self.num_heads,
            )
            for name in "qkv"
        )
        out = jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0, key_value_seq_lengths=text_length)
        out = einops.rearrange(out, "b l h d -> b l (h d)")
        return nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="o")(out)


class GatedMlp(nn.Module):
    """Norm and gated GELU (tanh approximation): [B, L, D] → [B, L, D]."""

    d_ff: int
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        hidden = RMSNorm(self.epsilon, self.dtype, name="layer_norm")(x)
        gate = nn.Dense(self.d_ff, use_bias=False, dtype=self.dtype, name="wi_0")(hidden)
        linear = nn.Dense(self.d_ff, use_bias=False, dtype=self.dtype, name="wi_1")(hidden)
        return nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="wo")(
            nn.gelu(gate, approximate=True) * linear
        )


class Block(nn.Module):
    """The two residual branches of one layer.

    The stream x is float32 in and out: trained T5s let it grow (transformers has to clamp it in float16), and beside it
    what a branch adds would be rounded away.
    """

    num_heads: int
    d_kv: int
    d_ff: int
    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x, bias, text_length):
        """Arguments as of `SelfAttention`. Returns (x, None) for scan."""
        x = x + SelfAttention(self.num_heads, self.d_kv, self.epsilon, self.dtype, name="SelfAttention")(
            x, bias, text_length
        )
        return x + GatedMlp(self.d_ff, self.epsilon, self.dtype, name="DenseReluDense")(x), None


class T5Encoder(nn.Module):
    """The encoder; weights come from a checkpoint (`conversion.names.t5`), the initialisers only give shapes.

    Attributes:
      vocab_size, d_model, d_kv, num_heads, d_ff, num_layers: as in a config.json; num_heads·d_kv need not be d_model.
      relative_attention_num_buckets, relative_attention_max_distance: see `relative_position_buckets`.
      layer_norm_epsilon: of every norm.
      dtype: of matrix products. The residual stream, norms, logits and softmax are float32 whatever it is. Parameters
        may be float32 or bfloat16 and are read as they are.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    num_heads: int
    d_ff: int
    num_layers: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token_ids, text_length=None):
        """Text features of tokenised captions.

        Args:
          token_ids: i32[B, L], padded at the end; any L, there is no longest caption.
          text_length: i32[B] ≥ 1, how many of the L are real (T5's tokenizer closes even the empty caption with an end
            token); None when all are.

        Returns:
          f32[B, L, d_model]. A padded row attends to the real tokens, and with pad ids in `token_ids` it equals the
          PyTorch model's: Σ's null caption is made of such rows.
        """
        length = token_ids.shape[1]
        buckets = relative_position_buckets(
            length, self.relative_attention_num_buckets, self.relative_attention_max_distance
        )
        # PyTorch keeps this table in block 0 and hands its values on to the others.
        bias = Embedding(self.relative_attention_num_buckets, self.num_heads, name="relative_attention_bias")(buckets)
        bias = einops.rearrange(bias.astype(jnp.float32), "q k h -> 1 h q k")
        x = Embedding(self.vocab_size, self.d_model, name="shared")(token_ids).astype(jnp.float32)
        x, _ = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
        )(self.num_heads, self.d_kv, self.d_ff, self.layer_norm_epsilon, self.dtype, name="block")(x, bias, text_length)
        return RMSNorm(self.layer_norm_epsilon, jnp.float32, name="final_layer_norm")(x)


# Far beyond every T5 there is.
_MAX_LAYERS, _MAX_SIZE = 1 << 10, 1 << 20


def encoder_from_config(
    config: Mapping[str, Any], *, path: str | os.PathLike = "config.json", dtype: Dtype = jnp.float32
) -> T5Encoder:
    """The encoder that a transformers config.json describes.

    Args:
      config: the parsed file.
      path: of the file, for messages.
      dtype: as of `T5Encoder`.

    Raises:
      InputError: not a T5 v1.1 (another model type, or the ungated or differently activated layers of other T5s), or
        sizes that are missing or make no sense; lists all that is wrong.
    """
    sizes: dict[str, Any] = {name: config.get(name) for name in XXL}
    # Older files leave these out.
    buckets = config.get("relative_attention_num_buckets", 32)
    max_distance = config.get("relative_attention_max_distance", 128)
    epsilon = config.get("layer_norm_epsilon", 1e-6)

    # (what v1.1 has, what a file without the key means). tie_word_embeddings is not looked at: only the decoder heeds
    # it, and transformers 5 writes true for v1.1 too.
    demanded = {
        "model_type": ("t5", None),
        "feed_forward_proj": ("gated-gelu", "relu"),
        "dense_act_fn": ("gelu_new", "gelu_new"),
        "is_gated_act": (True, True),
    }
    problems = [
        f"{name} is {config.get(name, default)!r}, T5 v1.1 has {wanted!r}"
        for name, (wanted, default) in demanded.items()
        if config.get(name, default) != wanted
    ]
    problems += [
        f"{name} is {value!r}, not a positive integer up to {_MAX_SIZE}"
        for name, value in sizes.items()
        if not _positive(value)
    ]
    if not (_positive(buckets) and _positive(max_distance) and buckets >= 4 and max_distance > buckets // 4):
        problems.append(
            f"relative_attention_num_buckets is {buckets!r} and relative_attention_max_distance {max_distance!r}: "
            "the first must be at least 4, the second more than a quarter of it"
        )
    if _positive(sizes["num_layers"]) and sizes["num_layers"] > _MAX_LAYERS:
        problems.append(f"num_layers is {sizes['num_layers']}, more than {_MAX_LAYERS}")
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        problems.append(f"layer_norm_epsilon is {epsilon!r}, not a positive number")
    if problems:
        raise InputError(
            f"{path}: not the config of a T5 v1.1 encoder; give that of the checkpoint's own directory\n  "
            + "\n  ".join(problems)
        )
    return T5Encoder(
        **sizes,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
        layer_norm_epsilon=epsilon,
        dtype=dtype,
    )


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE
