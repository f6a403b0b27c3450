"""The page of a set's nouns: outliers do not press all others into one bar, and odd sets are drawn too."""

import numpy as np
import pytest
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.figures.concepts import concepts_png


def draw(tmp_path, per_picture, appearances):
    path = tmp_path / "concepts.png"
    concepts_png(path, "a$b 猫", per_picture=per_picture, appearances=appearances, valid_above=10)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def blue(page):
    """Columns of the left half in which there are bars."""
    left = page[80:400, : page.shape[1] // 2]
    return ((left[..., 2] - left[..., 0] > 100).sum(0) > 20).sum()


def test_one_long_caption_hides_nothing(tmp_path):
    numbers = dict.fromkeys(range(20), 10)
    plain, with_outlier = (draw(tmp_path, each, [30.0, 11, 2, 0.5]) for each in (numbers, numbers | {50_000: 1}))
    assert blue(with_outlier) > 0.4 * blue(plain)


@pytest.mark.parametrize("per_picture", [{0: 3}, {7: 1}, {0: 1, 10**6: 1}])
def test_odd_sets_are_drawn(tmp_path, per_picture):
    assert draw(tmp_path, per_picture, [] if 0 in per_picture else [7.0]).shape == (480, 1200, 3)


def test_no_pictures(tmp_path):
    with pytest.raises(InputError, match="at least one picture"):
        concepts_png(tmp_path / "a.png", "", per_picture={}, appearances=[], valid_above=10)
