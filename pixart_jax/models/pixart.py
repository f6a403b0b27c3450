"""PixArt over tokens and positions: α, Σ and the class-conditional DiT of stage 1 are settings of one module.

Sources: PixArt-α (Chen et al. 2023) §2.3 for the block and adaLN-single; PixArt-Σ (Chen et al. 2024) §3.3 for
key/value compression;
DiT (Peebles & Xie 2022) for class conditioning and full adaLN.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple, TypedDict

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.devices.sharding import ROWS, TOKENS, WHOLE, constrain
from pixart_jax.models.attention import AUTO, AttentionSpec
from pixart_jax.models.layers import (
    CaptionEmbedder,
    CrossAttention,
    Dtype,
    LabelEmbedder,
    Mlp,
    ScalarEmbedder,
    SelfAttention,
    modulate,
    normal_002,
    sincos_2d,
    table_init,
    xavier,
    zeros,
)
from pixart_jax.models.remat import remat_options


class Size(TypedDict):
    """What sizes of PixArt differ in: fields of `PixArt`."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int


# Architectures by name; the number after the slash is the patch size. XL/2 is the only size the authors released.
SIZES: dict[str, Size] = {
    "XL/2": {"hidden_size": 1152, "depth": 28, "num_heads": 16, "patch_size": 2},
    "L/2": {"hidden_size": 1024, "depth": 24, "num_heads": 16, "patch_size": 2},
    "B/2": {"hidden_size": 768, "depth": 12, "num_heads": 12, "patch_size": 2},
    "S/2": {"hidden_size": 384, "depth": 12, "num_heads": 6, "patch_size": 2},
}


class ModelOutput(NamedTuple):
    """eps: f32[B, N, p·p·C]; v: the variance's interpolation values of the same shape, or None when it is not
    learned."""

    eps: jax.Array
    v: jax.Array | None


@flax.struct.dataclass
class BlockConditions:
    """What every block sees beside the tokens: t [B, D], t0 [B, 6D] (adaLN-single), text [B, L, D], lengths i32[B]."""

    t: jax.Array
    t0: jax.Array | None
    text: jax.Array | None
    text_length: jax.Array | None
    num_tokens: jax.Array | None


class Block(nn.Module):
    """One transformer block. adaLN-single adds a table to the shared modulation; full adaLN computes its own (DiT)."""

    num_heads: int
    mlp_ratio: float
    kv_compress: int
    kv_sampling: str
    qk_norm: bool
    adaln: str
    cross_attention: bool
    attention: AttentionSpec
    dtype: Dtype

    @nn.compact
    def __call__(self, x, residual, cond: BlockConditions):
        """x: [B, N, D]; residual: [B, N, D] added to the block's input (ControlNet), or None. Returns (x, None) for
        scan."""
        features, mesh = x.shape[-1], self.attention.mesh
        if self.adaln == "single":
            assert cond.t0 is not None  # `PixArt.embed_conditions` gives it to such blocks
            table = self.param("scale_shift_table", table_init, (6, features), jnp.float32)
            modulation = table + cond.t0.reshape(-1, 6, features).astype(jnp.float32)
        else:
            modulation = nn.Dense(6 * features, kernel_init=zeros, dtype=self.dtype, name="adaLN_modulation")(
                nn.silu(cond.t)
            )
            modulation = modulation.reshape(-1, 6, features).astype(jnp.float32)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = jnp.split(modulation, 6, axis=1)

        if residual is not None:
            x = x + residual.astype(x.dtype)
        hidden = modulate(x, shift_msa, scale_msa).astype(self.dtype)
        hidden = SelfAttention(
            self.num_heads,
            self.kv_compress,
            self.kv_sampling,
            self.qk_norm,
            self.attention,
            self.dtype,
            name="attn",
        )(hidden, cond.num_tokens)
        x = x + (gate_msa * hidden).astype(x.dtype)
        if self.cross_attention:
            hidden = CrossAttention(self.num_heads, self.attention, self.dtype, name="cross_attn")(
                x, cond.text, cond.text_length
            )
            x = x + hidden
        hidden = modulate(x, shift_mlp, scale_mlp).astype(self.dtype)
        hidden = Mlp(int(features * self.mlp_ratio), mesh, self.dtype, name="mlp")(hidden)
        return constrain(x + (gate_mlp * hidden).astype(x.dtype), mesh, ROWS, TOKENS, WHOLE), None


def rematerialized(block: type[nn.Module], policy: str, *, unroll: int, length: int) -> type[nn.Module]:
    """The block class with a policy of `remat.REMAT_POLICIES`, to be scanned as `remat.remat_options` is told."""
    return block if policy == "none" else nn.remat(block, **remat_options(policy, unroll=unroll, length=length))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection to patches. adaLN-single adds the raw t (no SiLU, no linear) to both
    rows."""

    features: int
    adaln: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x, t):
        hidden_size = x.shape[-1]
        if self.adaln == "single":
            table = self.param("scale_shift_table", table_init, (2, hidden_size), jnp.float32)
            modulation = table + t[:, None, :].astype(jnp.float32)
        else:
            modulation = nn.Dense(2 * hidden_size, kernel_init=zeros, dtype=self.dtype, name="adaLN_modulation")(
                nn.silu(t)
            )
            modulation = modulation.reshape(-1, 2, hidden_size).astype(jnp.float32)
        shift, scale = jnp.split(modulation, 2, axis=1)
        x = modulate(x, shift, scale).astype(self.dtype)
        return nn.Dense(self.features, kernel_init=zeros, dtype=self.dtype, name="linear")(x)


def patch_bias_init(fan_in: int):
    """PyTorch's default for a convolution's bias, U(±1/√fan_in), which the reference leaves in place."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class PixArt(nn.Module):
    """The denoiser.

    Attributes:
      hidden_size, depth, num_heads, mlp_ratio: as in a ViT.
      patch_size, latent_channels: p and C; a token is p·p·C wide.
      text_dim, max_text_tokens: width of the text features and rows of the null caption (120 α, 300 Σ).
      num_classes: 0 conditions on captions by cross-attention. Above 0 there is no cross-attention and a label
        embedding is added to the timestep's, as in DiT.
      micro_condition: α-1024's embedding of the original image size and aspect ratio.
      kv_compress: key/value compression ratio of each block (1 = none); empty means none anywhere.
      kv_sampling: one of `layers.KV_SAMPLINGS`, where there is compression.
      qk_norm: LayerNorm over all channels of q and k before the heads are split.
      adaln: "single" (one global MLP, a table per block) or "full" (an MLP per block, as in DiT).
      learn_sigma: predict the variance's interpolation values next to eps.
      remat: key of `remat.REMAT_POLICIES`.
      attention: how attention is computed, and the mesh over which it and all activations lie.
      dtype: of matrix products; parameters, LayerNorm statistics and softmax are float32.
      residual_dtype: of the residual stream, the sum that the blocks add to; None is `dtype`.
      scan_unroll: blocks per scan iteration; `depth` removes the loop, which lets a FLOP counter see every block.
    """

    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 2
    latent_channels: int = 4
    text_dim: int = 4096
    max_text_tokens: int = 120
    num_classes: int = 0
    micro_condition: bool = False
    kv_compress: tuple[int, ...] = ()
    kv_sampling: str = "conv"
    qk_norm: bool = False
    adaln: str = "single"
    learn_sigma: bool = True
    remat: str = "none"
    attention: AttentionSpec = AUTO
    dtype: Any = jnp.float32
    residual_dtype: Any = None
    scan_unroll: int = 1

    @property
    def stream_dtype(self) -> Any:
        """Of the residual stream."""
        return self.residual_dtype or self.dtype

    def setup(self):
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        width = self.patch_size**2 * self.latent_channels
        self.x_embedder = dense(self.hidden_size, kernel_init=xavier, bias_init=patch_bias_init(width))
        self.t_embedder = ScalarEmbedder(self.hidden_size, self.dtype)
        if self.micro_condition:
            self.csize_embedder = ScalarEmbedder(self.hidden_size // 3, self.dtype)
            self.ar_embedder = ScalarEmbedder(self.hidden_size // 3, self.dtype)
        self.y_embedder: LabelEmbedder | CaptionEmbedder
        if self.num_classes:
            self.y_embedder = LabelEmbedder(self.num_classes, self.hidden_size)
        else:
            self.y_embedder = CaptionEmbedder(self.hidden_size, self.text_dim, self.max_text_tokens, self.dtype)
        if self.adaln == "single":
            self.t_block = dense(6 * self.hidden_size, kernel_init=normal_002)
        # Flax names each stack after its first block: blocks_0, blocks_14 ...
        self.blocks = {str(first): self._block_stack(length, ratio) for first, length, ratio in self.segments()}
        self.final_layer = FinalLayer(width * (2 if self.learn_sigma else 1), self.adaln, self.dtype)

    def __call__(
        self,
        tokens,
        t,
        *,
        positions,
        num_tokens=None,
        text=None,
        text_length=None,
        text_drop=None,
        label=None,
        image_size=None,
        aspect_ratio=None,
        block_residuals=None,
    ) -> ModelOutput:
        """Predicts the noise in `tokens` at timestep `t`.

        Args:
          tokens: f32[B, N, p·p·C], noisy; block-major when any block compresses keys and values.
          t: f32[B] or i32[B], model timestep in [0, 999], possibly fractional.
          positions: f32[B, N, 2], see `pixart_jax.tokens.grid_positions`.
          num_tokens: i32[B], how many of the N are real; None when all are.
          text: [B, L, text_dim] text features, L ≤ max_text_tokens.
          text_length: i32[B] ≥ 1, how many of the L are real; None when all are.
          text_drop: bool[B], True replaces the caption by the null caption (at the caption's length) or the label by
            the unconditional class; None drops nothing.
          label: i32[B], class label, where num_classes > 0.
          image_size: f32[B, 2], original (height, width) in pixels; used where micro_condition is set.
          aspect_ratio: f32[B, 1], height/width; likewise.
          block_residuals: [depth, B, N, D] added to the blocks' inputs, or None; see `pixart_jax.models.controlnet`.

        Returns:
          ModelOutput in float32; rows of padded tokens are finite and meaningless.
        """
        x = self.embed_tokens(tokens, positions)
        cond = self.embed_conditions(
            t,
            num_tokens=num_tokens,
            text=text,
            text_length=text_length,
            text_drop=text_drop,
            label=label,
            image_size=image_size,
            aspect_ratio=aspect_ratio,
        )
        for first, length, _ in self.segments():
            residuals = None if block_residuals is None else block_residuals[first : first + length]
            x, _ = self.blocks[str(first)](x, residuals, cond)

        return self.predict(x, cond)

    def predict(self, x, cond: BlockConditions) -> ModelOutput:
        """What the blocks leave, [B, N, D], as a prediction."""
        out = self.final_layer(x, cond.t).astype(jnp.float32)
        parts = 2 if self.learn_sigma else 1
        out = out.reshape(*out.shape[:2], self.patch_size**2, parts * self.latent_channels)
        eps, *v = (part.reshape(*out.shape[:2], -1) for part in jnp.split(out, parts, axis=-1))
        return ModelOutput(eps, v[0] if v else None)

    def embed_tokens(self, tokens, positions):
        """Tokens f32[B, N, p·p·C] and positions f32[B, N, 2] to the blocks' input [B, N, D] in `stream_dtype`."""
        x, table = self.x_embedder(tokens), sincos_2d(positions, self.hidden_size)
        x = x.astype(self.stream_dtype) + table.astype(self.stream_dtype)
        return constrain(x, self.attention.mesh, ROWS, TOKENS, WHOLE)

    def embed_conditions(
        self,
        t,
        *,
        num_tokens=None,
        text=None,
        text_length=None,
        text_drop=None,
        label=None,
        image_size=None,
        aspect_ratio=None,
    ) -> BlockConditions:
        """What every block is conditioned on; arguments as in `__call__`."""
        temb = self.t_embedder(t)
        if self.micro_condition:
            sizes, ratio = self.csize_embedder(image_size), self.ar_embedder(aspect_ratio)
            temb = temb + jnp.concatenate([sizes, ratio], axis=1).reshape(-1, self.hidden_size)
        y = None
        if self.num_classes:
            temb = temb + self.y_embedder(label, text_drop).astype(self.dtype)
        else:
            y = self.y_embedder(text, text_drop)
        t0 = self.t_block(nn.silu(temb)) if self.adaln == "single" else None

        def by_rows(leaf):
            return constrain(leaf, self.attention.mesh, ROWS, WHOLE)

        temb, t0, y = by_rows(temb), None if t0 is None else by_rows(t0), None if y is None else by_rows(y)
        return BlockConditions(t=temb, t0=t0, text=y, text_length=text_length, num_tokens=num_tokens)

    @nn.nowrap
    def segments(self) -> list[tuple[int, int, int]]:
        """(first block, number of blocks, kv ratio) of each run of equal blocks; parameters of a run are stacked."""
        ratios = self.kv_compress or (1,) * self.depth
        if len(ratios) != self.depth:
            raise ValueError(f"kv_compress has {len(ratios)} entries, the model {self.depth} blocks")
        runs = [(ratio, len(list(group))) for ratio, group in itertools.groupby(ratios)]
        starts = itertools.accumulate((length for _, length in runs), initial=0)
        return [(start, length, ratio) for start, (ratio, length) in zip(starts, runs, strict=False)]

    @nn.nowrap
    def block_fields(self, kv_compress: int) -> dict[str, Any]:
        """The fields of a `Block` of this model."""
        return {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "kv_compress": kv_compress,
            "kv_sampling": self.kv_sampling,
            "qk_norm": self.qk_norm,
            "adaln": self.adaln,
            "cross_attention": not self.num_classes,
            "attention": self.attention,
            "dtype": self.dtype,
        }

    def _block_stack(self, length: int, kv_compress: int):
        unroll = min(self.scan_unroll, length)
        return nn.scan(
            rematerialized(Block, self.remat, unroll=unroll, length=length),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=length,
            unroll=unroll,
        )(**self.block_fields(kv_compress))
