"""A feature network whose trained weights package indexes hold, where FID's cannot be had."""

from __future__ import annotations

import pathlib

import numpy as np

from pixart_jax.conversion.efficientnet import load_efficientnet
from pixart_jax.evaluators.networks import FEATURES, LOGITS, FeatureNetwork, checksum
from pixart_jax.evaluators.preprocessing import bicubic
from pixart_jax.models.efficientnet import INPUT_SIZE, NUM_CLASSES, NUM_FEATURES, EfficientNetLite, Features

_NAME = "EfficientNet-lite0"
# Of efficientnet-lite0-57934424.pth, as its name tells.
_PUBLISHED = "57934424"


def open_efficientnet(path: pathlib.Path) -> FeatureNetwork:
    """EfficientNet-lite0 with weights from a file. What is measured with it is no FID.

    Args:
      path: see `conversion.efficientnet.load_efficientnet`.

    Raises:
      InputError: the file is damaged or another network's.
    """
    sha256 = checksum(path, _NAME)
    return FeatureNetwork(
        name=_NAME,
        sha256=sha256,
        published=sha256.startswith(_PUBLISHED),
        preprocessing=f"bicubic-{INPUT_SIZE}",
        input_shape=(INPUT_SIZE, INPUT_SIZE, 3),
        outputs={FEATURES: NUM_FEATURES, LOGITS: NUM_CLASSES},
        prepare=prepare,
        apply=_apply,
        params=load_efficientnet(path),
    )


def prepare(picture: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] → f32[224, 224, 3], about [-1, 1].

    The scale is that of the training of the weights (tensorflow/tpu, efficientnet/lite); resized as clean-fid does.
    """
    return (bicubic(picture, INPUT_SIZE) - 127) / 128


def _apply(params, pictures):
    found: Features = EfficientNetLite().apply({"params": params}, pictures)  # type: ignore[assignment]
    return {FEATURES: found.pooled, LOGITS: found.logits}
