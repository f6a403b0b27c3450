"""Files of pictures to decode."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from pixart_jax.data.decoding import BadImage, decode

# Gradients, and noise that keeps the lossless files from being all header.
RGB = np.stack(np.broadcast_arrays(np.arange(40)[:, None] * 6, np.arange(56) * 4, 90), axis=-1)
RGB = (RGB + np.random.default_rng(0).integers(0, 16, (40, 56, 1))).astype(np.uint8)
GREY = RGB[..., 0]
ALPHA = (np.indices((40, 56)).sum(0) * 2.5).astype(np.uint8)


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
