"""EfficientNet-lite0, a small classifier of ImageNet whose weights package indexes hold: features for a distance.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling", whose B0 without squeeze-and-excitation and with
ReLU6 in place of swish is lite0. Submodule names follow the PyTorch package `efficientnet_lite_pytorch`, whose paddings
are TensorFlow's "SAME".
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.batch_norm import FrozenBatchNorm

# Height and width of what the network was trained on; it takes others.
INPUT_SIZE = 224
NUM_FEATURES = 1280
NUM_CLASSES = 1000

# Features must be those of every other implementation, whatever an accelerator does with float32 products by default.
_EXACT = jax.lax.Precision.HIGHEST


class Stage(NamedTuple):
    """`repeats` blocks of one width, of which the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_STEM_WIDTH = 32


class Features(NamedTuple):
    """What a picture comes to.

    Attributes:
      pooled: f32[B, 1280], averaged over space.
      logits: f32[B, 1000].
    """

    pooled: jax.Array
    logits: jax.Array


def _pointwise(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, precision=_EXACT, name=name)


class _Depthwise(nn.Module):
    """A convolution of each channel by itself, as a sum of shifted pictures: five times as fast on a CPU as XLA's."""

    size: int
    stride: int

    @nn.compact
    def __call__(self, x):
        size, stride = self.size, self.stride
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (size, size, 1, x.shape[-1]))
        height, width = (-(-side // stride) for side in x.shape[1:3])
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        y = jnp.zeros((), x.dtype)
        for row in range(size):
            for column in range(size):
                rows = slice(row, row + (height - 1) * stride + 1, stride)
                columns = slice(column, column + (width - 1) * stride + 1, stride)
                y += x[:, rows, columns] * kernel[row, column, 0]
        return y


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; what comes in is added where the shapes are the same."""

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x):
        stage, y = self.stage, x
        if stage.expansion > 1:
            y = _pointwise(x.shape[-1] * stage.expansion, "expand_conv")(y)
            y = nn.relu6(FrozenBatchNorm(name="bn0")(y))
        y = _Depthwise(stage.kernel, self.stride, name="depthwise_conv")(y)
        y = nn.relu6(FrozenBatchNorm(name="bn1")(y))
        y = FrozenBatchNorm(name="bn2")(_pointwise(stage.width, "project_conv")(y))
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Pictures to features.

    `__call__`: f32[B, H, W, 3], normalised → `Features`.
    """

    stages: tuple[Stage, ...] = LITE0

    @nn.compact
    def __call__(self, x) -> Features:
        x = nn.Conv(_STEM_WIDTH, (3, 3), 2, "SAME", use_bias=False, precision=_EXACT, name="conv_stem")(x)
        x = nn.relu6(FrozenBatchNorm(name="bn0")(x))
        number = 0
        for stage in self.stages:
            for repeat in range(stage.repeats):
                x = _Block(stage, stage.stride if repeat == 0 else 1, name=f"blocks_{number}")(x)
                number += 1
        x = nn.relu6(FrozenBatchNorm(name="bn1")(_pointwise(NUM_FEATURES, "conv_head")(x)))
        pooled = jnp.mean(x, (1, 2))
        return Features(pooled, nn.Dense(NUM_CLASSES, precision=_EXACT, name="fc")(pooled))
