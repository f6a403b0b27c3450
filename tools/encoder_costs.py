"""FLOPs of what a picture and its caption are encoded with, once each, for `tools.cost`."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pixart_jax.encoding.picture_features import EFFICIENTNETS_CELL, GRIDS, feature_grid
from pixart_jax.errors import InputError
from pixart_jax.models.dino import Dino, DinoSizes
from pixart_jax.models.efficientnet import NUM_FEATURES, EfficientNetLite
from pixart_jax.models.t5 import XXL, T5Encoder
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.training.flops import count_flops

# The autoencoders of Stable Diffusion and SDXL, which are equal but for their weights and the latents' scale.
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
# By their features' width: DINOv2 of sizes S, B and L in patches of 14 pixels. The one other is EfficientNet-lite0.
DINOS = {
    width: DinoSizes(width, depth, width // 64, 4 * width, 14, positions=37)
    for width, depth in ((384, 12), (768, 12), (1024, 24))
}


@functools.cache
def vae_flops(side: int, method: Literal["encode", "decode"] = "encode") -> float:
    """Of the autoencoder to or from one square picture."""
    # Attention over large pictures runs in a loop, which XLA counts once: its projections and products by hand.
    vae = AutoencoderKL(**VAE, mid_block_add_attention=False, dtype=jnp.bfloat16)
    cells, width = side // vae.downsample, VAE["block_out_channels"][-1]
    attention = 2 * cells**2 * width * (4 * width + 2 * cells**2)
    shape = (side, side, vae.in_channels) if method == "encode" else (cells, cells, vae.latent_channels)
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(lambda x: vae.init(jax.random.key(0), x, method=method), inputs)
    return attention + require_count(count_flops(lambda p, x: vae.apply(p, x, method=method), params, inputs))


@functools.cache
def t5_flops(length: int) -> float:
    """T5-XXL's forward pass over one caption."""
    block = T5Encoder(**XXL, dtype=jnp.bfloat16).clone(num_layers=1)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(lambda x: block.init(jax.random.key(0), x), tokens)
    return XXL["num_layers"] * require_count(count_flops(block.apply, params, tokens))


def require_count(flops: float | None) -> float:
    if flops is None:
        raise InputError("JAX_PLATFORMS leaves out the CPU, which FLOPs are counted on; set JAX_PLATFORMS=cpu")
    return flops


def check_align(dim: int) -> None:
    """Raises InputError where it is not known which network's features are so wide."""
    if dim not in DINOS and dim != NUM_FEATURES:
        known = ", ".join(map(str, (*DINOS, NUM_FEATURES)))
        raise InputError(f"--pictures: no network is known with features of config.align.dim = {dim}, only of {known}")


@functools.cache
def align_flops(dim: int, side: int) -> float:
    """The forward pass, over one square picture, of the network that is aligned with (`PictureFeatures`)."""
    network = Dino(DINOS[dim]) if dim in DINOS else EfficientNetLite()
    cell = DINOS[dim].patch_size if dim in DINOS else EFFICIENTNETS_CELL
    a, b = feature_grid(side, side, *GRIDS["dino" if dim in DINOS else "efficientnet-lite0"])
    picture = jax.ShapeDtypeStruct((1, a * cell, b * cell, 3), jnp.float32)
    params = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), picture)
    return require_count(count_flops(network.apply, params, picture))
