"""The feature network of the Fréchet inception distance: Inception v3 as TensorFlow's graph of 2015-12-05 has it.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision"; Heusel et al. 2017, "GANs
Trained by a Two Time-Scale Update Rule", whose distance is defined on this very graph. It differs from torchvision's
network in three places: average pools leave their padding out of the divisor, the last block pools by maximum, and
there are 1008 classes. Submodule names follow the PyTorch file `pt_inception-2015-12-05-6726825d.pth`.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.batch_norm import FrozenBatchNorm

# Height and width of what the network takes.
INPUT_SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008

# Features must be those of every other implementation, whatever an accelerator does with float32 products by default.
_EXACT = jax.lax.Precision.HIGHEST


class Features(NamedTuple):
    """What the distances are taken of; the first three are averaged over space.

    Attributes:
      f64: f32[B, 64], after the first max pool.
      f192: f32[B, 192], after the second.
      f768: f32[B, 768], before the last reduction.
      f2048: f32[B, 2048], the features of FID, KID, precision and recall.
      logits_unbiased: f32[B, 1008], of the classifier without its bias: those of the Inception Score.
      logits: f32[B, 1008].
    """

    f64: jax.Array
    f192: jax.Array
    f768: jax.Array
    f2048: jax.Array
    logits_unbiased: jax.Array
    logits: jax.Array


class _Unit(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x):
        pads = [(pad, pad) for pad in self.padding]
        x = nn.Conv(self.features, self.kernel, self.stride, pads, use_bias=False, precision=_EXACT, name="conv")(x)
        return nn.relu(FrozenBatchNorm(name="bn")(x))


def _across(features: int, name: str) -> _Unit:
    return _Unit(features, (1, 7), padding=(0, 3), name=name)


def _down(features: int, name: str) -> _Unit:
    return _Unit(features, (7, 1), padding=(3, 0), name=name)


def _max_pool(x, stride: int = 2, pad: int = 0):
    return nn.max_pool(x, (3, 3), (stride, stride), [(pad, pad)] * 2)


def _average_pool(x):
    return nn.avg_pool(x, (3, 3), (1, 1), [(1, 1)] * 2, count_include_pad=False)


class _BlockA(nn.Module):
    """[B, 35, 35, C] → [B, 35, 35, 224 + pool_features]."""

    pool_features: int

    @nn.compact
    def __call__(self, x):
        first = _Unit(64, name="branch1x1")(x)
        fives = _Unit(48, name="branch5x5_1")(x)
        fives = _Unit(64, (5, 5), padding=(2, 2), name="branch5x5_2")(fives)
        threes = _Unit(64, name="branch3x3dbl_1")(x)
        threes = _Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(threes)
        threes = _Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(threes)
        pooled = _Unit(self.pool_features, name="branch_pool")(_average_pool(x))
        return jnp.concatenate([first, fives, threes, pooled], axis=-1)


class _BlockB(nn.Module):
    """[B, 35, 35, 288] → [B, 17, 17, 768]."""

    @nn.compact
    def __call__(self, x):
        single = _Unit(384, (3, 3), 2, name="branch3x3")(x)
        double = _Unit(64, name="branch3x3dbl_1")(x)
        double = _Unit(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        double = _Unit(96, (3, 3), 2, name="branch3x3dbl_3")(double)
        return jnp.concatenate([single, double, _max_pool(x)], axis=-1)


class _BlockC(nn.Module):
    """[B, 17, 17, 768] → the same, through `width` channels."""

    width: int

    @nn.compact
    def __call__(self, x):
        first = _Unit(192, name="branch1x1")(x)
        single = _Unit(self.width, name="branch7x7_1")(x)
        single = _across(self.width, "branch7x7_2")(single)
        single = _down(192, "branch7x7_3")(single)
        double = _Unit(self.width, name="branch7x7dbl_1")(x)
        double = _down(self.width, "branch7x7dbl_2")(double)
        double = _across(self.width, "branch7x7dbl_3")(double)
        double = _down(self.width, "branch7x7dbl_4")(double)
        double = _across(192, "branch7x7dbl_5")(double)
        pooled = _Unit(192, name="branch_pool")(_average_pool(x))
        return jnp.concatenate([first, single, double, pooled], axis=-1)


class _BlockD(nn.Module):
    """[B, 17, 17, 768] → [B, 8, 8, 1280]."""

    @nn.compact
    def __call__(self, x):
        threes = _Unit(192, name="branch3x3_1")(x)
        threes = _Unit(320, (3, 3), 2, name="branch3x3_2")(threes)
        sevens = _Unit(192, name="branch7x7x3_1")(x)
        sevens = _Unit(192, (1, 7), padding=(0, 3), name="branch7x7x3_2")(sevens)
        sevens = _Unit(192, (7, 1), padding=(3, 0), name="branch7x7x3_3")(sevens)
        sevens = _Unit(192, (3, 3), 2, name="branch7x7x3_4")(sevens)
        return jnp.concatenate([threes, sevens, _max_pool(x)], axis=-1)


class _BlockE(nn.Module):
    """[B, 8, 8, C] → [B, 8, 8, 2048]."""

    max_pooled: bool

    @nn.compact
    def __call__(self, x):
        first = _Unit(320, name="branch1x1")(x)
        single = _Unit(384, name="branch3x3_1")(x)
        double = _Unit(448, name="branch3x3dbl_1")(x)
        double = _Unit(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(double)
        ends = []
        for name, branch in (("branch3x3_2", single), ("branch3x3dbl_3", double)):
            ends.append(_Unit(384, (1, 3), padding=(0, 1), name=f"{name}a")(branch))
            ends.append(_Unit(384, (3, 1), padding=(1, 0), name=f"{name}b")(branch))
        pooled = _max_pool(x, stride=1, pad=1) if self.max_pooled else _average_pool(x)
        return jnp.concatenate([first, *ends, _Unit(192, name="branch_pool")(pooled)], axis=-1)


class FidInception(nn.Module):
    """Pictures to features.

    `__call__`: f32[B, 299, 299, 3] of values about [-1, 1] → `Features`.
    """

    @nn.compact
    def __call__(self, x) -> Features:
        x = _Unit(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = _Unit(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _Unit(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x)
        x = _max_pool(x)
        f64 = x.mean((1, 2))
        x = _Unit(80, name="Conv2d_3b_1x1")(x)
        x = _Unit(192, (3, 3), name="Conv2d_4a_3x3")(x)
        x = _max_pool(x)
        f192 = x.mean((1, 2))
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = _BlockA(pool_features, name=name)(x)
        x = _BlockB(name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = _BlockC(width, name=name)(x)
        f768 = x.mean((1, 2))
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(False, name="Mixed_7b")(x)
        x = _BlockE(True, name="Mixed_7c")(x)
        f2048 = x.mean((1, 2))
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (f2048.shape[-1], NUM_CLASSES))
        bias = self.param("fc_bias", nn.initializers.zeros, (NUM_CLASSES,))
        unbiased = jnp.dot(f2048, kernel, precision=_EXACT)
        return Features(f64, f192, f768, f2048, unbiased, unbiased + bias)
