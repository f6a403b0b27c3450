"""LPIPS: how far apart two pictures look, in features of a network that has learnt to name what is in them.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, on VGG16
(Simonyan & Zisserman 2014), version 0.1 of the authors' package `lpips`: its constants, and its heads' names.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.models.hed import STAGES
from pixart_jax.models.layers import Dtype

# Smaller pictures have nothing left in the last stage: four of them halve, and drop an odd row or column.
MIN_SIZE = 16
# Mean and std of ImageNet's pixels, rounded as in the package, for pixels in [-1, 1].
_SHIFT, _SCALE = np.array([(-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)], np.float32)
# Added to the features' length.
_EPSILON = 1e-10


class Vgg16(nn.Module):
    """The convolutions of VGG16.

    Attributes:
      dtype: of the convolutions.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x) -> list[jax.Array]:
        """[B, H, W, 3], normalised, to the features before each pool and at the end: relu1_2, 2_2, 3_3, 4_3, 5_3."""
        found: list[jax.Array] = []
        for stage, (count, features) in enumerate(STAGES, 1):
            if found:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for i in range(1, count + 1):
                x = nn.relu(nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=f"conv{stage}_{i}")(x))
            found.append(x)
        return found


class Heads(nn.Module):
    """What each channel counts."""

    @nn.compact
    def __call__(self, differences) -> jax.Array:
        """Squared differences f32[B, h, w, C], one array of each stage, to f32[B]."""
        means = (
            nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}")(x).mean((1, 2, 3)) for i, x in enumerate(differences)
        )
        return sum(means, start=jnp.zeros(()))


class Lpips(nn.Module):
    """The distance of two pictures.

    Attributes:
      dtype: of VGG's convolutions; the rest is float32.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, first, second) -> jax.Array:
        """Distances of pictures of one size, row by row.

        All pixels count: rows that hold pictures of several sizes, padded, have no such distance.

        Args:
          first, second: f32[B, H, W, 3] in [-1, 1], H and W at least MIN_SIZE.

        Returns:
          f32[B], 0 where they are the same.

        Raises:
          InputError: the pictures are too small, or their shapes differ.
        """
        if first.shape != second.shape or first.ndim != 4 or min(first.shape[1:3]) < MIN_SIZE or first.shape[3] != 3:
            raise InputError(
                f"LPIPS compares pictures [B, H, W, 3] of one size and at least {MIN_SIZE} pixels, got {first.shape} "
                f"and {second.shape}"
            )
        vgg = Vgg16(self.dtype, name="vgg")
        # One after the other, so that where one of them is not differentiated nothing is kept for it.
        pairs = zip(*(map(_unit, vgg((x - _SHIFT) / _SCALE)) for x in (first, second)), strict=True)
        return Heads(name="heads")([jnp.square(one - other) for one, other in pairs])


def _unit(features):
    """Features of length 1, in float32; of length 0 where all of them are 0."""
    features = features.astype(jnp.float32)
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    # A root's gradient at 0 is infinite, and a place where no feature is active is ordinary.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return features / (length + _EPSILON)
