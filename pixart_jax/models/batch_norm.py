"""Batch normalisation of networks that are not trained here."""

from __future__ import annotations

import flax.linen as nn
import jax


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by the statistics that were kept at the end of training, which are parameters here.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x):
        """[..., C] to the same."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
