"""The image autoencoder of Stable Diffusion and SDXL: pictures to latents and back.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G. The
architecture and the fields are those of diffusers' `AutoencoderKL`. PixArt-α uses `sd-vae-ft-ema`, PixArt-Σ the SDXL
VAE: one architecture, two sets of weights, two scaling factors. Submodule names follow the PyTorch checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.errors import InputError
from pixart_jax.models.attention import plain_attention
from pixart_jax.models.layers import Dtype

# Most attention logits in memory at once: 256 MiB of float32. A 1024 px picture has 4 times as many, a 2K one 64 times.
MAX_LOGITS = 2**26

# What diffusers can vary and no autoencoder of PixArt does. A missing key means this value.
_FIXED_FIELDS = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
# Values that change nothing, so that they mean None.
_MEANS_NONE = {"shift_factor": (0,), "latents_mean": (0,), "latents_std": (1,)}
_REQUIRED_FIELDS = ("block_out_channels", "layers_per_block", "latent_channels")
_COUNTS = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
_MAX_LAYERS = 64
_SWITCHES = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


def conv(
    features: int,
    dtype: Dtype,
    *,
    name: str | None = None,
    size: int = 3,
    strides: int = 1,
    padding: Sequence[tuple[int, int]] | None = None,
) -> nn.Conv:
    """A size×size convolution that keeps height and width, unless `strides` and `padding` say otherwise."""
    padded = size // 2 if padding is None else padding
    return nn.Conv(features, (size, size), strides, padded, dtype=dtype, name=name)


def group_norm(groups: int, dtype: Dtype, name: str) -> nn.GroupNorm:
    """GroupNorm whose statistics are float32 whatever `dtype`, from the centred values: outputs have large means."""
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """Two convolutions of normalised, SiLU-activated inputs, added to the input: [B, H, W, C] → [B, H, W, features]."""

    features: int
    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        hidden = conv(self.features, self.dtype, name="conv1")(
            nn.silu(group_norm(self.groups, self.dtype, name="norm1")(x))
        )
        hidden = conv(self.features, self.dtype, name="conv2")(
            nn.silu(group_norm(self.groups, self.dtype, name="norm2")(hidden))
        )
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, name="conv_shortcut", size=1)(x)
        return x + hidden


class AttentionBlock(nn.Module):
    """One head of attention between all pixels, added to the input: [B, H, W, C] → the same."""

    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        batch, height, width, features = x.shape
        hidden = group_norm(self.groups, self.dtype, name="group_norm")(x).reshape(batch, height * width, features)
        q, k, v = (nn.Dense(features, dtype=self.dtype, name=name)(hidden) for name in ("to_q", "to_k", "to_v"))
        hidden = nn.Dense(features, dtype=self.dtype, name="to_out_0")(attend_in_parts(q, k, v))
        return x + hidden.reshape(x.shape)


def attend_in_parts(q, k, v):
    """Single-head attention, [B, N, C] each, by as few equal parts of the queries as keep MAX_LOGITS."""
    batch, length, _ = q.shape
    parts = math.ceil(batch * length**2 / MAX_LOGITS)
    size = math.ceil(length / parts)
    q = jnp.pad(q, ((0, 0), (0, parts * size - length), (0, 0)))
    q = einops.rearrange(q, "b (parts n) c -> parts b n 1 c", parts=parts)
    k, v = k[:, :, None], v[:, :, None]
    out = jax.lax.map(lambda part: plain_attention(part, k, v), q)
    return einops.rearrange(out, "parts b n 1 c -> b (parts n) c")[:, :length]


class MidBlock(nn.Module):
    """Residual block, attention unless switched off, residual block, at the latents' resolution."""

    groups: int
    add_attention: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        x = ResnetBlock(x.shape[-1], self.groups, self.dtype, name="resnets_0")(x)
        if self.add_attention:
            x = AttentionBlock(self.groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(x.shape[-1], self.groups, self.dtype, name="resnets_1")(x)


class DownBlock(nn.Module):
    """Residual blocks, then, unless `is_last`, half the height and width."""

    features: int
    num_layers: int
    groups: int
    is_last: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"resnets_{i}")(x)
        if self.is_last:
            return x
        # The reference pads below and to the right only; symmetric padding would shift the picture by a pixel.
        return conv(self.features, self.dtype, name="downsamplers_0", strides=2, padding=((0, 1), (0, 1)))(x)


class EnlargingConv(nn.Module):
    """A 3×3 convolution of the input with each pixel repeated to 2×2: [B, H, W, C] → [B, 2H, 2W, features].

    The repeated input is never made: repeating is a convolution with ones of the input spread out with zeros between,
    and two convolutions are one, with a 4×4 kernel.
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Turned round twice: by a turned kernel XLA knows the gradient of a convolution with strides, which cuDNN has.
        # It has nothing else that skips the zeros, and XLA would write them.
        turned, corners = jnp.flip(kernel, (0, 1)), [(i, j) for i in (0, 1) for j in (0, 1)]
        turned = jnp.stack([jnp.pad(turned, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in corners]).sum(0)
        out = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            jnp.flip(turned.astype(self.dtype), (0, 1)),
            (1, 1),
            ((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out + bias.astype(self.dtype)


class UpBlock(nn.Module):
    """Residual blocks, then, unless `is_last`, twice the height and width by repeating pixels."""

    features: int
    num_layers: int
    groups: int
    is_last: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        for i in range(self.num_layers):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"resnets_{i}")(x)
        if self.is_last:
            return x
        return EnlargingConv(self.features, self.dtype, name="upsamplers_0")(x)


class Half(nn.Module):
    """What encoder and decoder share: their fields, and how they end."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    out_channels: int
    groups: int
    add_attention: bool
    dtype: Dtype

    def output(self, x):
        """The last norm, SiLU and convolution, in float32: pixels rounded to bfloat16 would show as banding."""
        x = nn.silu(group_norm(self.groups, jnp.float32, name="conv_norm_out")(x))
        return conv(self.out_channels, jnp.float32, name="conv_out")(x)


class Encoder(Half):
    """Images [B, H, W, in_channels] to f32[B, H/downsample, W/downsample, out_channels]."""

    @nn.compact
    def __call__(self, x):
        sizes = self.block_out_channels
        x = conv(sizes[0], self.dtype, name="conv_in")(x)
        for i, features in enumerate(sizes):
            last = i == len(sizes) - 1
            x = DownBlock(features, self.layers_per_block, self.groups, last, self.dtype, name=f"down_blocks_{i}")(x)
        x = MidBlock(self.groups, self.add_attention, self.dtype, name="mid_block")(x)
        return self.output(x)


class Decoder(Half):
    """Latents [B, h, w, latent_channels] to f32[B, h·downsample, w·downsample, out_channels]."""

    @nn.compact
    def __call__(self, x):
        sizes = self.block_out_channels[::-1]
        x = conv(sizes[0], self.dtype, name="conv_in")(x)
        x = MidBlock(self.groups, self.add_attention, self.dtype, name="mid_block")(x)
        for i, features in enumerate(sizes):
            last = i == len(sizes) - 1
            x = UpBlock(features, self.layers_per_block + 1, self.groups, last, self.dtype, name=f"up_blocks_{i}")(x)
        return self.output(x)


class AutoencoderKL(nn.Module):
    """The autoencoder. Latents go in and out unscaled: whoever makes tokens multiplies by `scaling_factor`.

    Parameters are float32; `model.apply({"params": params}, latents, method="decode")` runs one half.

    Attributes:
      block_out_channels: features of each resolution, finest first; each but the first halves height and width.
      layers_per_block: residual blocks of the encoder per resolution; the decoder has one more.
      latent_channels: C of the latents.
      in_channels, out_channels: of the pictures.
      norm_num_groups: groups of every GroupNorm.
      use_quant_conv, use_post_quant_conv: a 1×1 convolution after the encoder, before the decoder.
      mid_block_add_attention: attention at the lowest resolution.
      scaling_factor: one over the std of the training latents.
      dtype: of convolutions and matrix products. The released SDXL weights overflow float16.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    in_channels: int = 3
    out_channels: int = 3
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215
    dtype: Dtype = jnp.float32

    @classmethod
    def from_config(cls, config: Mapping, dtype: Dtype = jnp.float32) -> AutoencoderKL:
        """The model that a diffusers `config.json` describes.

        Keys of bookkeeping (`_diffusers_version` ...) and `sample_size`, which only sets the tiles in diffusers, are
        ignored. Optional keys that are missing have diffusers' defaults. `force_upcast` forbids float16 alone: bfloat16
        has float32's range.

        Raises:
          InputError: names the first field that is missing, unknown, malformed or not supported.
        """
        fields = {name for name in cls.__dataclass_fields__ if name not in ("dtype", "parent", "name")}
        config = {name: value for name, value in config.items() if name in _FIXED_FIELDS or not name.startswith("_")}

        def check(holds: bool, name: str, cure: str) -> None:
            if not holds:
                raise InputError(f"autoencoder config: {name}={config.get(name)!r} {cure}")

        known = fields | _FIXED_FIELDS.keys() | {"down_block_types", "up_block_types", "sample_size", "force_upcast"}
        for name in config:
            check(name in known, name, "is not a field of AutoencoderKL that is known here")
        for name in _REQUIRED_FIELDS:
            check(name in config, name, "is missing")
        for name, value in _FIXED_FIELDS.items():
            same = (value, *_MEANS_NONE.get(name, ()))
            found = config.get(name, value)
            # Of each channel, where it is a list.
            check(
                found in same or (isinstance(found, list) and all(each in same[1:] for each in found)),
                name,
                f"is not supported, only {value!r}",
            )
        given = {name: config[name] for name in fields & config.keys()}
        for name in given.keys() & set(_COUNTS):
            check(_is_count(given[name]), name, "must be a positive integer")
        check(given.get("layers_per_block", 1) <= _MAX_LAYERS, "layers_per_block", f"must be at most {_MAX_LAYERS}")
        for name in given.keys() & set(_SWITCHES):
            check(isinstance(given[name], bool), name, "must be true or false")
        sizes, groups = config["block_out_channels"], given.get("norm_num_groups", cls.norm_num_groups)
        check(
            isinstance(sizes, list | tuple) and len(sizes) > 0 and all(_is_count(s) and s % groups == 0 for s in sizes),
            "block_out_channels",
            f"must list positive multiples of norm_num_groups={groups}",
        )
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            types = [kind] * len(sizes)
            check(config.get(name, types) in (types, tuple(types)), name, f"is not supported, only {types}")
        factor = given.get("scaling_factor", cls.scaling_factor)
        check(
            type(factor) in (int, float) and math.isfinite(factor) and factor > 0,
            "scaling_factor",
            "must be a positive number",
        )
        check(
            jnp.dtype(dtype) != jnp.float16 or config.get("force_upcast") is False,
            "force_upcast",
            "says that the weights overflow float16; use bfloat16 or float32",
        )
        return cls(**given | {"block_out_channels": tuple(sizes)}, dtype=dtype)

    @property
    def downsample(self) -> int:
        """Pixels per latent cell, along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    def setup(self):
        options: dict[str, Any] = {
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "groups": self.norm_num_groups,
            "add_attention": self.mid_block_add_attention,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(out_channels=2 * self.latent_channels, **options)
        self.decoder = Decoder(out_channels=self.out_channels, **options)
        # A few channels at the lowest resolution: float32 costs nothing here.
        if self.use_quant_conv:
            self.quant_conv = conv(2 * self.latent_channels, jnp.float32, size=1)
        if self.use_post_quant_conv:
            self.post_quant_conv = conv(self.latent_channels, jnp.float32, size=1)

    def __call__(self, images):
        """The picture after a round trip through the mean latents. It uses, and so initialises, every parameter."""
        return self.decode(self.encode(images)[0])

    def encode(self, images):
        """The posterior of the latents.

        Args:
          images: f32[B, H, W, in_channels] in [-1, 1]; H and W are multiples of `downsample`.

        Returns:
          (mean, std), f32[B, H/downsample, W/downsample, latent_channels] each, unscaled.

        Raises:
          InputError: another shape.
        """
        if (
            images.ndim != 4
            or images.shape[3] != self.in_channels
            or any(s % self.downsample for s in images.shape[1:3])
        ):
            raise InputError(
                f"the autoencoder takes images [B, H, W, {self.in_channels}] with H and W multiples of "
                f"{self.downsample}, got {images.shape}"
            )
        moments = self.encoder(images)
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(jnp.clip(log_variance, -30, 20) / 2)

    def decode(self, latents):
        """Pictures f32[B, h·downsample, w·downsample, out_channels] of unscaled latents f32[B, h, w, latent_channels].

        Pixels may leave [-1, 1] a little; clip when writing them out.

        Raises:
          InputError: another shape.
        """
        if latents.ndim != 4 or latents.shape[3] != self.latent_channels:
            raise InputError(f"the autoencoder takes latents [B, h, w, {self.latent_channels}], got {latents.shape}")
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


def _is_count(value) -> bool:
    # At most far beyond every autoencoder there is.
    return type(value) is int and 0 < value <= 1 << 14
