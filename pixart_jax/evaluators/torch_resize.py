"""PyTorch's two bicubic resizes, to the last digit, without PyTorch.

Source: `upsample_bicubic2d` of PyTorch's native kernels; torchvision's `resize` of a uint8 picture is the first.
"""

from __future__ import annotations

import numpy as np

# Coefficients of the cubic: Pillow's, which PyTorch takes where it antialiases, and PyTorch's own where it does not.
_PILLOW, _TORCH = -0.5, -0.75
# The most bits that products of weights have.
_MAX_BITS = 22


def resize_uint8(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased, in whole numbers: weights have 16 bits where Pillow's have 22, so that values differ by one or two.

    Args:
      picture: uint8[H, W, C].

    Returns:
      uint8[height, width, C].
    """
    # Columns first, as PyTorch has it: what is between is rounded, too.
    picture = _resize_axis(picture, 1, width)
    return _resize_axis(picture, 0, height)


def _resize_axis(picture: np.ndarray, axis: int, size: int) -> np.ndarray:
    if picture.shape[axis] == size:
        return picture
    first, weights = _antialiased_weights(picture.shape[axis], size)
    bits = 0
    while bits < _MAX_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    # Half away from zero.
    whole = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32)
    shape = (*picture.shape[:axis], size, *picture.shape[axis + 1 :])
    total = np.full(shape, 1 << (bits - 1), np.int32)
    for tap in range(weights.shape[1]):
        at = np.minimum(first + tap, picture.shape[axis] - 1)
        column = whole[:, tap].reshape(-1, *(1,) * (picture.ndim - 1 - axis))
        total += np.take(picture, at, axis) * column
    return np.clip(total >> bits, 0, 255).astype(np.uint8)


def _antialiased_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The first old pixel that each new one is made of, i64[new], and the weights from there on, f64[new, taps]."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = 2 * stretch
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), old)
    taps = np.arange((end - first).max())
    weights = _cubic((taps + first[:, None] - centre[:, None] + 0.5) / stretch, _PILLOW)
    weights = np.where(taps < (end - first)[:, None], weights, 0)
    return first, weights / weights.sum(1, keepdims=True)


def resize_float(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """From the four nearest rows and columns, however far apart others lie; may overshoot.

    Args:
      picture: f32[H, W, C].

    Returns:
      f32[height, width, C].
    """
    for axis, size in ((1, width), (0, height)):
        old = picture.shape[axis]
        if old == size:
            continue
        # In float32, as PyTorch does it: far from the corner its rounding shows.
        scale = np.float64(np.float32(old) / np.float32(size))
        at = (scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32)
        low = np.floor(at).astype(np.int64)
        share = at - low.astype(np.float32)
        total = np.zeros((*picture.shape[:axis], size, *picture.shape[axis + 1 :]), np.float32)
        for tap in range(-1, 3):
            weight = _cubic(share - np.float32(tap), _TORCH).astype(np.float32)
            rows = np.take(picture, np.clip(low + tap, 0, old - 1), axis)
            total += rows * weight.reshape(-1, *(1,) * (picture.ndim - 1 - axis))
        picture = total
    return picture


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The kernel of Keys 1981, "Cubic Convolution Interpolation", of width 4."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
