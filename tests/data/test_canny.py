"""Canny's edges are scikit-image's."""

import numpy as np
import pytest
from skimage import data, feature

from pixart_jax.data.canny import canny


def expected(picture, **settings):
    grey = picture.astype(float) @ np.array([0.299, 0.587, 0.114]) / 255
    return feature.canny(grey, **{"sigma": 1.0, "low_threshold": 0.1, "high_threshold": 0.2} | settings)


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_of_photographs(name):
    picture = getattr(data, name)()
    found = canny(picture)
    assert 0.05 < found.mean() < 0.2
    np.testing.assert_array_equal(found, expected(picture))


def test_of_noise_and_other_settings():
    """Where maxima lie in every direction, and pieces of edges touch by their corners."""
    picture = np.random.default_rng(0).integers(0, 256, (41, 56, 3), dtype=np.uint8)
    settings = {"sigma": 0.7, "low_threshold": 0.3, "high_threshold": 1.2}
    found = canny(picture, sigma=0.7, low=0.3, high=1.2)
    assert found.any()
    np.testing.assert_array_equal(found, expected(picture, **settings))


def test_of_nothing():
    assert not canny(np.full((16, 24, 3), 90, np.uint8)).any()
