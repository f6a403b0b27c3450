"""Pictures cut and resized to a bucket, as the reference does it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.decoding import fit, to_float
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=300)
def test_fit_has_the_bucket_s_size_for_every_picture(height, width, bucket_height, bucket_width):
    colour = (10, 200, 90)
    fitted = fit(Image.new("RGB", (width, height), colour), Bucket(1.0, bucket_height, bucket_width))
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, np.broadcast_to(colour, (bucket_height, bucket_width, 3)))


@pytest.fixture(scope="module")
def photograph():
    """Smooth noise of all scales, 480×640."""
    random = np.random.default_rng(0)
    total = np.zeros((480, 640, 3))
    for size in (4, 8, 16, 32, 64, 128):
        coarse = random.standard_normal((3, size, size)).astype(np.float32)
        waves = [Image.fromarray(channel).resize((640, 480), Image.Resampling.BICUBIC) for channel in coarse]
        total += np.stack([np.asarray(wave) for wave in waves], axis=-1) / size**0.5
    return Image.fromarray(np.clip(total * 100 + 128, 0, 255).astype(np.uint8))


def resize_then_crop(image, bucket):
    """The reference: cover the bucket, the other side rounded down, then the centre."""
    if bucket.height / image.height > bucket.width / image.width:
        size = int(image.width * bucket.height / image.height), bucket.height
    else:
        size = bucket.width, int(image.height * bucket.width / image.width)
    left, top = round((size[0] - bucket.width) / 2), round((size[1] - bucket.height) / 2)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return resized[top : top + bucket.height, left : left + bucket.width]


@pytest.mark.parametrize(("height", "width"), [(240, 240), (240, 320), (160, 320), (120, 100), (960, 960)])
def test_fit_is_the_reference_s_resize_and_crop_where_that_is_exact(photograph, height, width):
    bucket = Bucket(1.0, height, width)
    difference = np.abs(fit(photograph, bucket).astype(int) - resize_then_crop(photograph, bucket))
    assert difference.max() <= 1 and difference.mean() < 0.01


@given(st.integers(60, 256), st.integers(60, 256), st.integers(16, 300), st.integers(16, 300))
@settings(deadline=None)
def test_fit_cuts_at_fractions_of_a_pixel(height, width, bucket_height, bucket_width):
    """Pixels that hold their own coordinates: out come the places of the bucket's pixels in the picture.

    To half a pixel, as levels are whole numbers; shrinking sixfold rounds twice.
    """
    rows, columns = np.indices((height, width))
    fitted = fit(
        Image.fromarray(np.dstack([rows, columns, rows * 0]).astype(np.uint8)),
        Bucket(1.0, bucket_height, bucket_width),
    )
    scale = max(bucket_height / height, bucket_width / width)
    edge = 3 + int(3 * scale)  # where the filter reaches over the picture's rim
    for axis, (side, size) in enumerate([(height, bucket_height), (width, bucket_width)]):
        expected = side / 2 - 0.5 + (np.arange(size) + 0.5 - size / 2) / scale
        measured = fitted[bucket_height // 2, :, 1] if axis else fitted[:, bucket_width // 2, 0]
        np.testing.assert_allclose(measured[edge:-edge], expected[edge:-edge], atol=0.75 if scale > 1 / 6 else 1.25)


def test_a_short_cut_for_large_pictures_costs_little(photograph):
    bucket = Bucket(1.0, 48, 64)  # a tenth: averages three pixels a side first
    slow = np.asarray(photograph.resize((64, 48), Image.Resampling.BICUBIC)).astype(float)
    error = fit(photograph, bucket) - slow
    assert 0 < np.sqrt(np.mean(error**2)) < 1


def test_fit_does_not_alias():
    checkers = (np.indices((300, 300)).sum(0) % 2 * 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(checkers[..., None], 3, axis=-1))
    for side in (41, 110):
        fitted = fit(image, Bucket(1.0, side, side))[2:-2, 2:-2].astype(int)
        assert np.abs(fitted - 127.5).max() < 20


def test_fit_keeps_the_centre():
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    fitted = fit(image, Bucket(1.0, 60, 60))
    np.testing.assert_allclose(fitted[:, 4:-4], np.broadcast_to([0, 0, 255], (60, 52, 3)), atol=2)
    np.testing.assert_array_equal(fitted, fitted[:, ::-1])
    np.testing.assert_array_equal(fit(image.rotate(90, expand=True), Bucket(1.0, 60, 60)), fitted.swapaxes(0, 1))


def test_fit_takes_what_decode_returns():
    with pytest.raises(InputError, match="mode RGB"):
        fit(Image.new("L", (8, 8)), Bucket(1.0, 8, 8))


def test_to_float_is_the_inverse_of_to_uint8():
    levels = np.arange(256, dtype=np.uint8)
    floats = to_float(levels)
    assert floats.dtype == np.float32 and (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_allclose(floats, (levels / 255 - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(floats), levels)
