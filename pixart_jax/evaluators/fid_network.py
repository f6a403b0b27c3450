"""The network of FID, KID, Inception Score, precision and recall."""

from __future__ import annotations

import functools
import pathlib

from pixart_jax.conversion.inception import load_inception
from pixart_jax.evaluators.networks import FEATURES, LOGITS, FeatureNetwork, checksum
from pixart_jax.evaluators.preprocessing import prepare
from pixart_jax.models.inception import INPUT_SIZE, NUM_CLASSES, NUM_FEATURES, Features, FidInception

FID_INCEPTION = "FID-Inception"

# Of the file that the FID of the literature is made with, as its name tells.
_PUBLISHED = "6726825d"


def open_fid_network(path: pathlib.Path, preprocessing: str) -> FeatureNetwork:
    """FID-Inception with weights from a file.

    Args:
      path: see `conversion.inception.load_inception`.
      preprocessing: one of `evaluators.preprocessing.PREPROCESSINGS`.

    Raises:
      InputError: the file is damaged or another network's.
    """
    sha256 = checksum(path, FID_INCEPTION)
    return FeatureNetwork(
        name=FID_INCEPTION,
        sha256=sha256,
        published=sha256.startswith(_PUBLISHED),
        preprocessing=preprocessing,
        input_shape=(INPUT_SIZE, INPUT_SIZE, 3),
        outputs={FEATURES: NUM_FEATURES, LOGITS: NUM_CLASSES},
        prepare=functools.partial(prepare, preprocessing=preprocessing),
        apply=_apply,
        params=load_inception(path),
    )


def _apply(params, pictures):
    found: Features = FidInception().apply({"params": params}, pictures)  # type: ignore[assignment]
    return {FEATURES: found.f2048, LOGITS: found.logits_unbiased}
