"""Embedders, projections and the block-level layers of PixArt. Submodule names follow the PyTorch checkpoints."""

from __future__ import annotations

import math

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.devices.sharding import HEADS, ROWS, TOKENS, constrain
from pixart_jax.models.attention import AttentionSpec, attention
from pixart_jax.models.timestep_freqs import TIMESTEP_FREQS

Dtype = jnp.dtype

xavier = nn.initializers.xavier_uniform()
normal_002 = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()


def table_init(key, shape, dtype=jnp.float32):
    """N(0, 1)/√D for tables whose last axis is the hidden size D."""
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def layer_norm(x, eps: float = 1e-6):
    """LayerNorm over the last axis without affine parameters; float32 in and out of the statistics, returns float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


def modulate(x, shift, scale):
    """LN(x)·(1 + scale) + shift, in float32. x: [B, N, D]; shift, scale: [B, 1, D]."""
    return layer_norm(x) * (1 + scale) + shift


def sinusoid(values):
    """[cos ‖ sin] features f32[..., 256] of scalars f32[...]: timesteps, pixel sizes, aspect ratios."""
    angles = values.astype(jnp.float32)[..., None] * TIMESTEP_FREQS
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_2d(positions, hidden_size: int):
    """Position table f32[B, N, D] of (row, column) coordinates f32[B, N, 2].

    The column fills the first half of the channels, the row the second, whatever the reference's helper names suggest.
    """
    omega = np.power(10000.0, -np.arange(hidden_size // 4, dtype=np.float64) / (hidden_size / 4)).astype(np.float32)
    rows, cols = (positions[..., i, None].astype(jnp.float32) * omega for i in (0, 1))
    return jnp.concatenate([jnp.sin(cols), jnp.cos(cols), jnp.sin(rows), jnp.cos(rows)], axis=-1)


class AffineNorm(nn.Module):
    """LayerNorm over all channels with scale and bias and PyTorch's default eps, as Σ uses it inside attention."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", zeros, (x.shape[-1],), jnp.float32)
        return (layer_norm(x, eps=1e-5) * scale + bias).astype(x.dtype)


class ScalarEmbedder(nn.Module):
    """Sinusoid of a scalar through a two-layer MLP: f32[...] → [..., features] in `dtype`."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, values):
        hidden = nn.Dense(self.features, kernel_init=normal_002, dtype=self.dtype, name="mlp_0")(sinusoid(values))
        return nn.Dense(self.features, kernel_init=normal_002, dtype=self.dtype, name="mlp_2")(nn.silu(hidden))


class LabelEmbedder(nn.Module):
    """Class label i32[B] → f32[B, D]; row `num_classes` of the table is the unconditional class."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label, drop):
        table = self.param("embedding_table", normal_002, (self.num_classes + 1, self.features), jnp.float32)
        if drop is not None:
            label = jnp.where(drop, self.num_classes, label)
        return table[label]


class CaptionEmbedder(nn.Module):
    """T5 features [B, L, text_dim] → [B, L, D], with the null caption standing in where `drop` is set."""

    features: int
    text_dim: int
    max_text_tokens: int
    dtype: Dtype

    @nn.compact
    def __call__(self, text, drop):
        if text.shape[1] > self.max_text_tokens or text.shape[2] != self.text_dim:
            raise ValueError(
                f"text features of shape {text.shape} do not fit a model of max_text_tokens={self.max_text_tokens}, "
                f"text_dim={self.text_dim}"
            )
        # A buffer in the reference: stored with the weights, never trained, hence the stop_gradient. Optimizers must
        # also leave it out of the weight decay (pixart_jax.optimizers).
        null_text = jax.lax.stop_gradient(
            self.param("y_embedding", table_init, (self.max_text_tokens, self.text_dim), jnp.float32)
        )
        text = text.astype(self.dtype)
        if drop is not None:
            text = jnp.where(drop[:, None, None], null_text[: text.shape[1]].astype(self.dtype), text)
        hidden = nn.Dense(self.features, kernel_init=normal_002, dtype=self.dtype, name="y_proj_fc1")(text)
        return nn.Dense(self.features, kernel_init=normal_002, dtype=self.dtype, name="y_proj_fc2")(
            nn.gelu(hidden, approximate=True)
        )


class HeadsDense(nn.Module):
    """A Dense layer to the heads of several tensors, q, k and v, which lie one after the other in one kernel's columns.

    [B, N, C] → `parts` arrays [B, N, D]. On a mesh, each device is brought its own heads' columns before the product:
    the kernel is small beside what it produces.
    """

    features: int
    parts: int
    num_heads: int
    mesh: Mesh | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        width = self.parts * self.features
        kernel = self.param("kernel", xavier, (x.shape[-1], width), jnp.float32)
        bias = self.param("bias", zeros, (width,), jnp.float32)
        by_head = (self.parts, self.num_heads, self.features // self.num_heads)
        kernel = kernel.astype(self.dtype).reshape(-1, *by_head)
        kernel = constrain(kernel, self.mesh, None, None, HEADS)
        out = jnp.einsum("bnc,cphd->bnphd", x.astype(self.dtype), kernel) + bias.astype(self.dtype).reshape(by_head)
        return [part.reshape(*x.shape[:-1], self.features) for part in jnp.split(out, self.parts, axis=2)]


# How keys and values are compressed, as the reference's `sampling` names it.
KV_SAMPLINGS = ("conv", "ave", "uniform", "uniform_every")


def keys_per_block(sampling: str, ratio: int) -> int:
    """How many of the ratio² tokens of a block are left as keys and values."""
    return ratio if sampling == "uniform_every" else 1


class SelfAttention(nn.Module):
    """Self-attention with Σ's optional q/k norm and key/value compression.

    `kv_compress` = r > 1 leaves of each run of r² consecutive (block-major) keys and values, by `kv_sampling`:
      "conv": their sum by one depthwise kernel shared by both, which equals the reference's r×r stride-r convolution,
        followed by one shared LayerNorm.
      "uniform": the first, which is the top left of its r×r block. So does the reference's "ave", whatever its name.
      "uniform_every": every r-th in row-major order: those of a block's first column.
    """

    num_heads: int
    kv_compress: int
    kv_sampling: str
    qk_norm: bool
    attention: AttentionSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x, num_tokens):
        features = x.shape[-1]
        q, k, v = HeadsDense(features, 3, self.num_heads, self.attention.mesh, self.dtype, name="qkv")(x)
        if self.qk_norm:
            q, k = AffineNorm(name="q_norm")(q), AffineNorm(name="k_norm")(k)
        if self.kv_compress > 1 and self.kv_sampling != "conv":
            block, kept = self.kv_compress**2, keys_per_block(self.kv_sampling, self.kv_compress)
            k, v = (
                einops.rearrange(
                    einops.rearrange(y, "b (n block) c -> b n block c", block=block)[:, :, :: block // kept],
                    "b n kept c -> b (n kept) c",
                )
                for y in (k, v)
            )
            num_tokens = None if num_tokens is None else num_tokens // block * kept
        elif self.kv_compress > 1:
            block = self.kv_compress**2
            kernel = self.param("sr_kernel", nn.initializers.constant(1 / block), (block, features), jnp.float32)
            bias = self.param("sr_bias", zeros, (features,), jnp.float32)
            norm = AffineNorm(name="norm")

            def pool(y):
                grouped = einops.rearrange(y, "b (n block) c -> b n block c", block=block)
                pooled = jnp.einsum("bnrc,rc->bnc", grouped, kernel.astype(self.dtype)) + bias.astype(self.dtype)
                return norm(pooled)

            k, v = pool(k), pool(v)
            num_tokens = None if num_tokens is None else num_tokens // block
        q, k, v = (einops.rearrange(y, "b n (h d) -> b n h d", h=self.num_heads) for y in (q, k, v))
        out = attention(q, k, v, num_tokens, spec=self.attention, split_keys=True)
        out = einops.rearrange(out, "b n h d -> b n (h d)")
        return nn.Dense(features, kernel_init=xavier, dtype=self.dtype, name="proj")(out)


class CrossAttention(nn.Module):
    """Attention of image tokens [B, N, D] to text tokens [B, L, D]; the output projection starts at zero."""

    num_heads: int
    attention: AttentionSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x, text, text_length):
        features = x.shape[-1]
        q = nn.Dense(features, kernel_init=xavier, dtype=self.dtype, name="q_linear")(x)
        k, v = HeadsDense(features, 2, self.num_heads, self.attention.mesh, self.dtype, name="kv_linear")(text)
        q, k, v = (einops.rearrange(y, "b n (h d) -> b n h d", h=self.num_heads) for y in (q, k, v))
        out = attention(q, k, v, text_length, spec=self.attention)
        out = einops.rearrange(out, "b n h d -> b n (h d)")
        return nn.Dense(features, kernel_init=zeros, dtype=self.dtype, name="proj")(out)


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    hidden_features: int
    mesh: Mesh | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(self.hidden_features, kernel_init=xavier, dtype=self.dtype, name="fc1")(x)
        hidden = constrain(hidden, self.mesh, ROWS, TOKENS, HEADS)
        return nn.Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name="fc2")(
            nn.gelu(hidden, approximate=True)
        )
