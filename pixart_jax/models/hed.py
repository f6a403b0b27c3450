"""HED: the network that draws the edges of a picture, which ControlNets are trained to follow.

Source: Xie & Tu 2015, "Holistically-Nested Edge Detection", in the form of ControlNet's `ControlNetHED.pth` (Zhang et
al. 2023), which PixArt's ControlNet uses too: VGG's five stages, of each one map of edges, and the mean of the five.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.layers import Dtype

# Stages of VGG-16: (number of convolutions, their width).
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

# Sides of pictures must be multiples of it for the five maps to lie over one another: four stages halve them.
UNIT = 16


class Stage(nn.Module):
    """Convolutions of one resolution, and their map of edges."""

    count: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to (the same of `features`, its map [B, H, W, 1])."""
        for i in range(self.count):
            x = nn.relu(nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name=f"convs_{i}")(x))
        return x, nn.Conv(1, (1, 1), dtype=self.dtype, name="projection")(x)


class Hed(nn.Module):
    """Edges of pictures.

    Attributes:
      dtype: of the convolutions.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pictures):
        """Edges of RGB pictures.

        Args:
          pictures: f32[B, H, W, 3] in [0, 255]; H and W multiples of UNIT.

        Returns:
          f32[B, H, W] in [0, 1]: how sure it is of an edge.
        """
        norm = self.param("norm", nn.initializers.zeros, (3,), jnp.float32)
        x = (pictures - norm).astype(self.dtype)
        total = jnp.zeros((), jnp.float32)
        for number, (count, features) in enumerate(STAGES, 1):
            if number > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x, edges = Stage(count, features, self.dtype, name=f"block{number}")(x)
            shape = (*pictures.shape[:3], 1)
            total += jax.image.resize(edges.astype(jnp.float32), shape, "bilinear")
        return nn.sigmoid(total[..., 0] / len(STAGES))
