"""What half-drawn latents look like: their colours as a linear function of the channels, without an autoencoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from pixart_jax.figures.images import to_uint8
from pixart_jax.tokens import DOWNSAMPLE

# Pixels along a side of what the autoencoder is shown, and of its smallest coloured squares.
_SIDE, _SQUARES = 256, (4, 16, 32)


@dataclasses.dataclass(frozen=True, eq=False)
class Colours:
    """colour = latent @ weights + bias, in [-1, 1].

    Attributes:
      weights: f32[C, 3].
      bias: f32[3].
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Colours:
        """By least squares, from pictures of coloured squares of several sizes.

        Args:
          encode: `Parts.encode_pictures`.
        """
        rng = np.random.default_rng(0)
        pictures = []
        for squares in _SQUARES:
            small = Image.fromarray(rng.integers(0, 256, (squares, squares, 3), dtype=np.uint8))
            pictures.append(np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)))
        shown = np.stack(pictures)
        latents = np.concatenate([encode(one[None])[0] for one in shown])
        cells = _SIDE // DOWNSAMPLE
        means = shown.reshape(-1, cells, DOWNSAMPLE, cells, DOWNSAMPLE, 3).mean(axis=(2, 4)) / 127.5 - 1
        known = np.concatenate([latents.reshape(-1, latents.shape[-1]), np.ones((means.size // 3, 1))], axis=1)
        found = np.linalg.lstsq(known.astype(np.float64), means.reshape(-1, 3), rcond=None)[0].astype(np.float32)
        return cls(found[:-1], found[-1])

    def pictures(self, latents: np.ndarray) -> np.ndarray:
        """uint8[n, h, w, 3], one pixel a cell, of unscaled latents f32[n, h, w, C]; what is not finite is grey."""
        return to_uint8(np.nan_to_num(latents @ self.weights + self.bias, nan=0.0, posinf=1.0, neginf=-1.0))
