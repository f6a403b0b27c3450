"""The distance of latents that is the distance of their pictures, as Yin et al. 2023 measure distillation's pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pixart_jax.adapters.adapter import Params
from pixart_jax.models.lpips import Lpips
from pixart_jax.tokens import grid_latents

# Of the frozen half: what the distance needs, LPIPS's parameters and the decoder's.
LPIPS, DECODER = "lpips", "decoder"


@dataclasses.dataclass(frozen=True)
class PictureDistance:
    """A `distribution_matching.Distance`: LPIPS of what the tokens are decoded to.

    Every row is taken for one of the same size, whatever it holds: of others the result is finite and meaningless.
    Decoder and features are computed again for the gradient, so that only one of them lies in memory at a time.

    Attributes:
      decode: (parameters, unscaled latents f32[B, h, w, C]) -> pictures f32[B, H, W, 3] in [-1, 1].
      network: called with the parameters that the frozen half has below LPIPS; `decode` with those below DECODER.
      grid: rows and columns of tokens of the pictures.
      patch_size, latent_scale, block_ratio: of their tokens, see `tokens.tokens_to_latents`.
    """

    decode: Callable[[Params, jax.Array], jax.Array]
    network: Lpips
    grid: tuple[int, int]
    patch_size: int
    latent_scale: float
    block_ratio: int = 1

    def __call__(self, drawn, wanted, batch: Mapping[str, jax.Array], frozen: Params) -> jax.Array:
        decode = jax.checkpoint(self.decode)
        # Clamped, as in Yin et al.'s script: what no picture shows is no distance.
        pictures = (jnp.clip(decode(frozen[DECODER], self._latents(tokens)), -1, 1) for tokens in (drawn, wanted))
        return jax.checkpoint(self.network.apply)({"params": frozen[LPIPS]}, *pictures)

    def _latents(self, tokens):
        return grid_latents(tokens, self.grid, self.patch_size, self.latent_scale, self.block_ratio)
