"""Small copies of pictures as features: what retrieval compares, without any weights."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork

# Pixels along a side. The quickstart's pictures are of this size, and are not resized.
_SIZE = 64


def pixel_network() -> FeatureNetwork:
    """Pictures of 64 × 64 pixels in [-1, 1] as features f32[64·64·3]."""
    return FeatureNetwork(
        name="pixels",
        sha256="",
        published=True,
        preprocessing=f"bicubic-{_SIZE}",
        input_shape=(_SIZE, _SIZE, 3),
        outputs={FEATURES: _SIZE * _SIZE * 3},
        prepare=_prepare,
        apply=lambda params, pictures: {FEATURES: pictures.reshape(len(pictures), -1)},
        params={},
    )


def _prepare(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    if image.size != (_SIZE, _SIZE):
        image = image.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / np.float32(127.5) - 1
