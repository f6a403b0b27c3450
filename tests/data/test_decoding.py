"""Real encoders' files in every mode, and broken ones; bytes go in, expected pixels or a reason come out."""

import functools
import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, features

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.decoding import BadImage, decode, fit, to_float
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8

# Gradients, and noise that keeps the lossless files from being all header.
RGB = np.stack(np.broadcast_arrays(np.arange(40)[:, None] * 6, np.arange(56) * 4, 90), axis=-1)
RGB = (RGB + np.random.default_rng(0).integers(0, 16, (40, 56, 1))).astype(np.uint8)
GREY = RGB[..., 0]


def encode(image, format, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data, **limits):
    image = decode(data, **({"max_pixels": 10**6, "min_side": 1} | limits))
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data, **limits):
    with pytest.raises(BadImage) as caught:
        pixels(data, **limits)
    return caught.value.reason


def png(width, height, bit_depth, colour_type, rows=b"", extra=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def over_white(rgb, alpha):
    alpha = alpha[..., None] / 255.0
    return np.rint(rgb * alpha + 255.0 * (1.0 - alpha))


@functools.cache
def files():
    """One file of RGB in each format, by name; the lossless ones start with an underscore."""
    made = {
        "jpeg": encode(RGB, "JPEG", quality=95),
        "progressive jpeg": encode(RGB, "JPEG", quality=95, progressive=True),
        "_png": encode(RGB, "PNG"),
        "webp": encode(RGB, "WEBP", quality=95),
        "_webp lossless": encode(RGB, "WEBP", lossless=True),
        "_tiff": encode(RGB, "TIFF"),
        "_tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
        "_bmp": encode(RGB, "BMP"),
        "gif": encode(RGB, "GIF"),
    }
    if features.check("avif"):
        made["avif"] = encode(RGB, "AVIF", quality=95)
    return made


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


ALPHA = (np.indices((40, 56)).sum(0) * 2.5).astype(np.uint8)


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


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(format, {})
    data = encode(RGB, format, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    np.testing.assert_allclose(pixels(data), UPRIGHT[orientation](RGB), atol=12 if format == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"junk" * 5, b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_is_ignored(exif):
    np.testing.assert_array_equal(pixels(encode(RGB, "PNG", exif=exif)), RGB)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    np.testing.assert_array_equal(pixels(encode(RGB, "PNG", exif=exif)), RGB)


def icc_profile(space, kind, connection, tags):
    """ICC.1:2001, version 2: a 128-byte header, the table of tags, and the tags at multiples of four."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    head = b"\0\0\0\0" + struct.pack(">I", 0x02400000) + kind + space + connection + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += struct.pack(">3i", 63190, 65536, 54061)
    whole = head.ljust(124, b"\0") + table + body
    return struct.pack(">I", len(whole) + 4) + whole


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_for_green():
    """sRGB with its red and green primaries swapped."""
    return srgb_profile().replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")


def linear_grey():
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return icc_profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": b"curv\0\0\0\0\0\0\0\0", b"wtpt": white})


def cyan_prints_red():
    """A printer whose cyan ink is red and whose magenta and yellow do not show."""
    straight = bytes(range(256))
    white, red, black = bytes((255, 128, 128)), bytes((136, 208, 195)), bytes((0, 128, 128))
    corners = b"".join(black if i & 1 else red if i & 8 else white for i in range(16))  # bits C M Y K
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + straight * 4 + corners + straight * 3
    return icc_profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def test_a_colour_profile_is_converted():
    swapped = pixels(encode(RGB, "PNG", icc_profile=red_for_green()))
    # Saturated colours keep within a level, the others too: primaries swap, grey stays.
    np.testing.assert_allclose(swapped, RGB[..., [1, 0, 2]], atol=1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_colour_profile_of_every_format(format):
    data = encode(Image.new("RGB", (16, 16), (250, 30, 30)), format, icc_profile=red_for_green())
    np.testing.assert_allclose(pixels(data)[8, 8], [30, 250, 30], atol=4)


def test_a_profile_of_transparent_and_of_palette_pictures():
    data = encode(np.dstack([RGB, ALPHA]), "PNG", icc_profile=red_for_green())
    np.testing.assert_allclose(pixels(data), over_white(RGB[..., [1, 0, 2]], ALPHA), atol=2)
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 30, 30])
    np.testing.assert_allclose(pixels(encode(image, "PNG", icc_profile=red_for_green()))[0, 0], [30, 250, 30], atol=1)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_of_grey_pictures(mode):
    """Linear light 0.2140 is half of sRGB's scale."""
    data = encode(Image.new(mode, (8, 8), 55 if mode == "L" else (55, 255)), "PNG", icc_profile=linear_grey())
    np.testing.assert_allclose(pixels(data)[0, 0], [128] * 3, atol=1)


def test_a_profile_of_cmyk_pictures():
    image = Image.new("CMYK", (24, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (8, 0, 16, 8))
    image.paste((0, 0, 0, 255), (16, 0, 24, 8))
    data = encode(image, "JPEG", quality=100, subsampling=0, icc_profile=cyan_prints_red())
    np.testing.assert_allclose(pixels(data)[4, 4::8], [[255] * 3, [255, 0, 0], [0] * 3], atol=9)


def test_an_srgb_profile_changes_nothing():
    np.testing.assert_array_equal(pixels(encode(RGB, "PNG", icc_profile=srgb_profile())), RGB)


@pytest.mark.parametrize(
    "profile", [b"junk", srgb_profile()[:200], srgb_profile()[:128], linear_grey(), cyan_prints_red(), b"\0" * 4000]
)
def test_a_broken_or_foreign_profile_is_ignored(profile):
    np.testing.assert_array_equal(pixels(encode(RGB, "PNG", icc_profile=profile)), RGB)


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
    start = time.perf_counter()
    assert reason(BOMBS[name]) == "too-large"
    assert time.perf_counter() - start < 0.5


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


def test_messages_are_the_same_every_time():
    """They are written to files that must not differ between two runs."""
    broken = b"\x89PNG\r\n\x1a\n" + bytes(40)
    messages = set()
    for _ in range(3):
        with pytest.raises(BadImage) as error:
            decode(broken, max_pixels=100, min_side=1)
        messages.add(str(error.value))
    assert len(messages) == 1 and "0x" not in messages.pop()
