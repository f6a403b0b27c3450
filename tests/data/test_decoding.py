"""Real encoders' files in every mode, and broken ones; bytes go in, expected pixels or a reason come out."""

import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from decoding_cases import ALPHA, GREY, RGB, encode, files, over_white, pixels, png, reason
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.errors import InputError


@pytest.mark.parametrize("name", files())
def test_every_format(name):
    difference = np.abs(pixels(files()[name]).astype(int) - RGB)
    assert difference.mean() <= (0 if name.startswith("_") else 6)


def test_modes_without_transparency():
    grey = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels(encode(GREY, "PNG")), grey)
    np.testing.assert_array_equal(pixels(encode(GREY > 99, "PNG")), np.where(grey > 99, 255, 0))
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(GREY).convert("P"), "PNG")), grey)
    np.testing.assert_allclose(pixels(encode(Image.fromarray(RGB).convert("CMYK"), "TIFF")), RGB, atol=1)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    rgba = np.dstack([RGB, ALPHA])
    np.testing.assert_allclose(pixels(encode(rgba, format, **options)), over_white(RGB, ALPHA), atol=1)


def test_grey_with_alpha():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    expected = over_white(np.repeat(GREY[..., None], 3, axis=-1), ALPHA)
    np.testing.assert_allclose(pixels(encode(image, "PNG")), expected, atol=1)


def test_transparent_palette():
    indices = (np.indices((8, 8)).sum(0) % 3).astype(np.uint8)
    image = Image.frombytes("P", (8, 8), indices.tobytes())
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    palette = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]])
    for transparency, alphas in ((bytes([255, 0, 128]), [255, 0, 128]), (1, [255, 0, 255])):
        expected = over_white(palette, np.array(alphas))[indices]
        np.testing.assert_allclose(pixels(encode(image, "PNG", transparency=transparency)), expected, atol=1)
    np.testing.assert_allclose(pixels(encode(image, "GIF", transparency=1)), expected, atol=1)


def test_one_colour_declared_transparent():
    assert (GREY == 60).any()
    grey = np.repeat(np.where(GREY == 60, 255, GREY)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels(encode(GREY, "PNG", transparency=60)), grey)
    colour = tuple(int(level) for level in RGB[3, 5])
    expected = np.where((colour == RGB).all(-1, keepdims=True), 255, RGB)
    np.testing.assert_array_equal(pixels(encode(RGB, "PNG", transparency=colour)), expected)


LEVELS_16 = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "big-endian TIFF"])
def test_sixteen_bit_grey_is_scaled(format):
    data = encode(LEVELS_16, format.split()[-1])
    if format.startswith("big"):
        data = encode(Image.frombytes("I;16B", (56, 40), LEVELS_16.astype(">u2").tobytes()), "TIFF")
        assert data.startswith(b"MM")
    expected = np.rint(LEVELS_16 / 257.0)
    np.testing.assert_array_equal(pixels(data), np.repeat(expected[..., None], 3, axis=-1))


def test_sixteen_bit_grey_with_a_transparent_level():
    levels = np.array([[0, 257, 1000, 65535]], ">u2")
    key = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 1000)
    key += struct.pack(">I", zlib.crc32(key[4:]))
    data = png(4, 1, 16, 0, b"\0" + levels.tobytes(), extra=key)
    np.testing.assert_array_equal(pixels(data)[0, :, 0], [0, 1, 255, 255])


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_is_scaled(channels):
    levels = np.full((5, 7, channels), 65535, ">u2")
    levels[..., 1] = 0x8000
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    data = png(7, 5, 16, 2 if channels == 3 else 6, rows)
    np.testing.assert_array_equal(pixels(data), np.broadcast_to([255, 128, 255], (5, 7, 3)))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_values_without_a_known_white_are_unsupported(mode):
    assert reason(encode(Image.new(mode, (8, 8)), "TIFF")) == "unsupported"


@pytest.mark.parametrize(
    ("tag", "value"), [(ExifTags.Base.BitsPerSample, 12), (ExifTags.Base.PhotometricInterpretation, 0)]
)
def test_sixteen_bit_tiffs_that_pillow_reads_wrong_are_unsupported(tag, value):
    data = encode(LEVELS_16, "TIFF")
    right = struct.pack("<HHIHH", tag, 3, 1, 16 if value == 12 else 1, 0)
    assert data.count(right) == 1
    assert reason(data.replace(right, struct.pack("<HHIHH", tag, 3, 1, value, 0))) == "unsupported"


def test_cmyk_jpeg():
    inks = np.zeros((8, 40, 4), np.uint8)
    for index, ink in enumerate([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 102)]):
        inks[:, 8 * index : 8 * index + 8] = ink
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0], [153, 153, 153]]
    np.testing.assert_allclose(pixels(data)[4, 4::8], expected, atol=3)


def test_ycck_jpeg():
    """Adobe's own: the K channel and luma are stored inverted, so paper is luma 0 and K 255."""
    # Pillow stores 255 − ink and marks it as CMYK (Adobe transform 0): 128 of 255 for both chroma channels, then
    # transform 2 makes it YCCK.
    stored = np.full((8, 24, 4), 128, np.uint8)
    stored[:, :8, [0, 3]] = 0, 255
    stored[:, 8:16, [0, 3]] = 255, 255
    stored[:, 16:, [0, 3]] = 0, 0
    data = encode(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data = data[: marker + 11] + b"\2" + data[marker + 12 :]
    np.testing.assert_allclose(pixels(data)[4, 4::8], [[255] * 3, [0] * 3, [0] * 3], atol=3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_is_taken(format):
    first, second = Image.new("RGB", (24, 16), (250, 10, 10)), Image.new("RGB", (24, 16), (10, 10, 250))
    data = encode(first, format, save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_allclose(pixels(data), np.asarray(first), atol=8)


@pytest.mark.parametrize("name", files())
@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_short_is_refused(name, tenths):
    data = files()[name]
    assert reason(data[: len(data) * tenths // 10]) == ("damaged" if tenths else "not-an-image")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n",
        b'{"error": "rate limited"}',
    ],
)
def test_other_files_are_no_images(data):
    assert reason(data) == "not-an-image"


BOMBS = {
    "png": png(60_000, 60_000, 8, 2, rows=b"\0" * 100),
    "small png": png(1001, 1000, 8, 2, rows=b"\0" * 100),
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0)
    + b"\0" * 768
    + b",\0\0\0\0\xff\xff\xff\xff\0\x08",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_size_is_judged_by_the_header(name, monkeypatch):
    def decodes(_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decodes)
    start = time.thread_time()
    assert reason(BOMBS[name]) == "too-large"
    assert time.thread_time() - start < 0.5


def test_limits_are_inclusive_and_pillow_s_own_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    data = encode(RGB, "PNG")
    assert pixels(data, max_pixels=40 * 56, min_side=40).shape == (40, 56, 3)
    assert reason(data, max_pixels=40 * 56 - 1) == "too-large"
    assert reason(data, min_side=41) == "too-small"
    assert before == Image.MAX_IMAGE_PIXELS and not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"min_side": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(InputError, match="at least 1"):
        pixels(encode(RGB, "PNG"), **limits)


def test_the_reason_survives_pickling_and_is_in_the_message():
    error = pickle.loads(pickle.dumps(BadImage("too-small", "3×3 pixels")))
    assert (error.reason, error.message, str(error)) == ("too-small", "3×3 pixels", "too-small: 3×3 pixels")


REASONS = {"not-an-image", "damaged", "too-small", "too-large", "unsupported"}


def decodes_or_says_why(data):
    try:
        pixels(data)
    except BadImage as error:
        assert error.reason in REASONS


@settings(deadline=None)
@given(start=st.sampled_from([b"", *sorted({data[:16] for data in files().values()})]), rest=st.binary(max_size=300))
@pytest.mark.filterwarnings("ignore")
def test_random_bytes_raise_nothing_else(start, rest):
    decodes_or_says_why(start + rest)


@settings(deadline=None, max_examples=300)
@given(name=st.sampled_from(sorted(files())), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255))))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_nothing_else(name, changes):
    data = bytearray(files()[name])
    for where, byte in changes:
        # Headers, which are at the start, are where most decoders go wrong.
        data[int(where**3 * (len(data) - 1))] = byte
    decodes_or_says_why(bytes(data))


def test_messages_are_the_same_every_time():
    """They are written to files that must not differ between two runs."""
    broken = b"\x89PNG\r\n\x1a\n" + bytes(40)
    messages = set()
    for _ in range(3):
        with pytest.raises(BadImage) as error:
            decode(broken, max_pixels=100, min_side=1)
        messages.add(str(error.value))
    assert len(messages) == 1 and "0x" not in messages.pop()
