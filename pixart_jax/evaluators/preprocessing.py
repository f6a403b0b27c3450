"""Pictures as the FID network of each library sees them. The three differ, and so do the features: a result says which.

| name             | resize to 299×299                                                        | values          |
|------------------|--------------------------------------------------------------------------|-----------------|
| `pytorch-fid`    | bilinear between pixel centres, without antialiasing                     | (x − 127.5)/127.5 |
| `torch-fidelity` | bilinear from corner to corner as in TensorFlow 1, without antialiasing  | (x − 128)/128   |
| `clean-fid`      | Pillow's bicubic, antialiased, of each channel in float32, then clipped  | (x − 128)/128   |

Source: Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", and the libraries' code.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.models.inception import INPUT_SIZE

PREPROCESSINGS = ("clean-fid", "pytorch-fid", "torch-fidelity")


def prepare(picture: np.ndarray, preprocessing: str) -> np.ndarray:
    """One picture as the network takes it.

    Args:
      picture: uint8[H, W, 3].
      preprocessing: one of PREPROCESSINGS.

    Returns:
      f32[299, 299, 3], about [-1, 1].

    Raises:
      InputError: an unknown name, or no picture of that shape and type.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise InputError(f"a picture must be uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}")
    if preprocessing == "pytorch-fid":
        return _bilinear(picture.astype(np.float32) / np.float32(255), half_pixel=True) * 2 - 1
    if preprocessing == "torch-fidelity":
        return (_bilinear(picture.astype(np.float32), half_pixel=False) - 128) / 128
    if preprocessing == "clean-fid":
        return (bicubic(picture, INPUT_SIZE) - 128) / 128
    raise InputError(f"preprocessing {preprocessing!r} is not known; choose from {', '.join(PREPROCESSINGS)}")


def _bilinear(x: np.ndarray, *, half_pixel: bool) -> np.ndarray:
    """f32[H, W, 3] → f32[299, 299, 3] from the two nearest rows and columns, however far apart the others lie."""
    for axis in (1, 0):
        size = x.shape[axis]
        # In float32, as the libraries do it: where a picture's size divides evenly, which row is next depends on it.
        scale = np.float32(size) / np.float32(INPUT_SIZE)
        at = np.arange(INPUT_SIZE, dtype=np.float32)
        at = np.maximum((at + np.float32(0.5)) * scale - np.float32(0.5), 0) if half_pixel else at * scale
        low = np.minimum(at.astype(np.int64), size - 1)
        high = np.minimum(low + 1, size - 1)
        weight = (at - low).reshape(-1, *(1,) * (2 - axis))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


def bicubic(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8[H, W, 3] → f32[S, S, 3] in [0, 255], S `size`: Pillow's, antialiased, of each channel in float32."""
    channels = [Image.fromarray(picture[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [channel.resize((size, size), Image.Resampling.BICUBIC) for channel in channels]
    return np.clip(np.stack([np.asarray(channel) for channel in resized], axis=-1), 0, 255)
