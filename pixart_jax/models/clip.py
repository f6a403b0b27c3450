"""CLIP: pictures and captions to features of one space, in which what belongs together points in one direction.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", §2.4; Hugging Face
transformers' CLIPModel for the names. What a config.json says is read by `models.clip_config`.
"""

from __future__ import annotations

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.t5 import Embedding

# transformers' name of each activation that CLIPs have: OpenAI's have the first, OpenCLIP's the second.
ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}
# What the end-of-text token is in configs of before it was looked at: the end is then where the largest id stands.
LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
    """What the transformers of CLIPs differ in; fields as in a config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float


@dataclasses.dataclass(frozen=True)
class VisionSizes(TransformerSizes):
    """Of the tower that looks at pictures, of `image_size` pixels squared."""

    image_size: int
    patch_size: int


@dataclasses.dataclass(frozen=True)
class TextSizes(TransformerSizes):
    """Of the tower that reads captions."""

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int


class SelfAttention(nn.Module):
    """[B, L, D] → [B, L, D]."""

    sizes: TransformerSizes
    causal: bool

    @nn.compact
    def __call__(self, x):
        q, k, v = (
            einops.rearrange(
                nn.Dense(x.shape[-1], name=name)(x), "b l (h d) -> b l h d", h=self.sizes.num_attention_heads
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return nn.Dense(x.shape[-1], name="out_proj")(einops.rearrange(out, "b l h d -> b l (h d)"))


class Mlp(nn.Module):
    """[B, L, D] → [B, L, D]."""

    sizes: TransformerSizes

    @nn.compact
    def __call__(self, x):
        hidden = ACTIVATIONS[self.sizes.hidden_act](nn.Dense(self.sizes.intermediate_size, name="fc1")(x))
        return nn.Dense(x.shape[-1], name="fc2")(hidden)


class Layer(nn.Module):
    """Two residual branches; returns (x, None) for scan."""

    sizes: TransformerSizes
    causal: bool

    @nn.compact
    def __call__(self, x):
        x = x + SelfAttention(self.sizes, self.causal, name="self_attn")(_norm(self.sizes, "layer_norm1")(x))
        return x + Mlp(self.sizes, name="mlp")(_norm(self.sizes, "layer_norm2")(x)), None


def _norm(sizes: TransformerSizes, name: str) -> nn.LayerNorm:
    # The fast variance loses digits where a mean is large.
    return nn.LayerNorm(sizes.layer_norm_eps, use_fast_variance=False, name=name)


def _layers(sizes: TransformerSizes, causal: bool):
    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=sizes.num_hidden_layers)
    return scanned(sizes, causal, name="layers")


class VisionTower(nn.Module):
    """Pictures to features.

    `__call__`: f32[B, image_size, image_size, 3], normalised → f32[B, projection_dim].
    """

    sizes: VisionSizes
    projection_dim: int

    @nn.compact
    def __call__(self, pixels):
        width, patch = self.sizes.hidden_size, (self.sizes.patch_size,) * 2
        patches = nn.Conv(width, patch, patch, "VALID", use_bias=False, name="patch_embedding")(pixels)
        patches = einops.rearrange(patches, "b h w d -> b (h w) d")
        first = self.param("class_embedding", nn.initializers.normal(0.02), (width,), jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(patches), 1, width)), patches], axis=1)
        x = x + Embedding(x.shape[1], width, name="position_embedding")(jnp.arange(x.shape[1]))
        x, _ = _layers(self.sizes, causal=False)(_norm(self.sizes, "pre_layrnorm")(x))
        pooled = _norm(self.sizes, "post_layernorm")(x[:, 0])
        return nn.Dense(self.projection_dim, use_bias=False, name="visual_projection")(pooled)


class TextTower(nn.Module):
    """Captions to features.

    `__call__`: i32[B, L] token ids with an end-of-text token in each row, L ≤ max_position_embeddings →
    f32[B, projection_dim]. What follows the end is never read: attention is causal.
    """

    sizes: TextSizes
    projection_dim: int

    @nn.compact
    def __call__(self, token_ids):
        sizes = self.sizes
        x = Embedding(sizes.vocab_size, sizes.hidden_size, name="token_embedding")(token_ids)
        table = Embedding(sizes.max_position_embeddings, sizes.hidden_size, name="position_embedding")
        x, _ = _layers(sizes, causal=True)(x + table(jnp.arange(token_ids.shape[1])))
        x = _norm(sizes, "final_layer_norm")(x)
        is_end = token_ids if sizes.eos_token_id == LEGACY_EOS else token_ids == sizes.eos_token_id
        pooled = x[jnp.arange(len(x)), jnp.argmax(is_end, axis=-1)]
        return nn.Dense(self.projection_dim, use_bias=False, name="text_projection")(pooled)


class Clip(nn.Module):
    """Both towers, or the one that a checkpoint holds; weights come from a checkpoint (`conversion.names.clip`).

    Parameters and products are float32, and the products exact to it: features must be those of every other
    implementation, whatever an accelerator does with float32 by default.

    Attributes:
      vision, text: sizes of the towers; None for one that is not there.
      projection_dim: width of the features.
    """

    vision: VisionSizes | None
    text: TextSizes | None
    projection_dim: int

    def setup(self):
        if self.vision:
            self.vision_model = VisionTower(self.vision, self.projection_dim)
        if self.text:
            self.text_model = TextTower(self.text, self.projection_dim)
        if self.vision and self.text:
            # Scales similarities in training; here it is only kept, so that a checkpoint goes back whole.
            self.logit_scale = self.param("logit_scale", nn.initializers.zeros, (), jnp.float32)

    def __call__(self, pixels, token_ids):
        """Makes all parameters: either argument is None where there is no tower for it."""
        image = self.image_features(pixels) if self.vision else None
        return image, self.text_features(token_ids) if self.text else None

    def image_features(self, pixels):
        """f32[B, projection_dim], not normalised; see `VisionTower`."""
        with jax.default_matmul_precision("highest"):
            return self.vision_model(pixels)

    def text_features(self, token_ids):
        """f32[B, projection_dim], not normalised; see `TextTower`."""
        with jax.default_matmul_precision("highest"):
            return self.text_model(token_ids)
