"""Figures of features: which metrics need what, and whose picture is whose."""

import numpy as np
import pytest

from pixart_jax.errors import InputError
from pixart_jax.evaluators.measures import feature_figures, retrieval_figure
from pixart_jax.evaluators.networks import FEATURES
from pixart_jax.evaluators.picture_sets import SetFeatures
from pixart_jax.evaluators.pixel_network import pixel_network


def features(rows, read=None):
    rows = np.asarray(rows, np.float32)
    return SetFeatures({FEATURES: rows}, np.arange(len(rows)) if read is None else np.array(read), ())


def test_a_picture_is_looked_for_at_its_own_place():
    gallery = features(np.eye(5), read=[0, 1, 3, 4, 6])  # 2 and 5 could not be read.
    own = [6, 3, 0, 4]
    drawn = features(0.9 * np.eye(5)[[4, 2, 0, 3]])
    assert retrieval_figure(drawn, gallery, own) == {"retrieval_at_1": 1.0}
    # The second drawn picture could not be read; the last looks like another.
    drawn = features(0.9 * np.eye(5)[[4, 0, 1]], read=[0, 2, 3])
    assert retrieval_figure(drawn, gallery, own)["retrieval_at_1"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="could not be read"):
        retrieval_figure(drawn, gallery, [6, 3, 5, 4])


def test_metrics_that_nobody_asked_for_are_not_made():
    random = np.random.default_rng(0)
    one, two = (features(random.normal(size=(8, 6))) for _ in range(2))
    network = pixel_network()
    figures, subset = feature_figures(["kid"], network, one, two, kid_subset_size=5)
    assert set(figures) == {"kernel_distance", "kernel_distance_std"} and subset == 5
    figures, subset = feature_figures(["pr"], network, one, two, kid_subset_size=5)
    assert set(figures) == {"precision", "recall"} and subset is None
    assert feature_figures(["retrieval"], network, one, None, kid_subset_size=5) == ({}, None)
