"""Pictures that say which side is up, and what their colours mean."""

import io
import struct

import numpy as np
import pytest
from decoding_cases import ALPHA, RGB, encode, over_white, pixels
from PIL import ExifTags, Image, ImageCms, ImageOps

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
