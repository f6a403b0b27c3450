"""Bytes of picture files from the web to RGB pixels of a bucket's size; a file that will not do says why and stops
nothing."""

from __future__ import annotations

import functools
import io
import math
import re

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.picture_formats import formats, formats_of, is_heif, is_recognised
from pixart_jax.errors import InputError

# Modes that `Image.convert` takes to RGB or RGBA with the meaning of their values known. Not so 32-bit integers and
# floats, which have no white, nor Lab, nor the YCbCr of some TIFFs, which Pillow's versions read differently.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B")

# First bytes, after the length, of a still picture and of a film.
_AVIF = (b"ftypavif", b"ftypavis")

# Of the longer side to the shorter; what is longer would be cropped beyond recognition.
MAX_RATIO = 4.5

_ADDRESS = re.compile(r" object at 0x[0-9a-f]+")
_BYTES = re.compile(r"""b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """A picture file that cannot be used. Nothing is wrong with the run: count the reason and go on with the next file.

    Attributes:
      message: what exactly, with sizes or the decoder's own words.
      reason: why, in one of six stable words to count by.
        "not-an-image": empty, or begins like none of the formats `decode` reads.
        "damaged": begins like one of them, but is cut short or broken.
        "too-small": a side is below the least wanted.
        "too-large": more pixels than allowed, by the header; nothing was decoded.
        "too-long": longer than allowed for its width, or wider for its height; nothing was decoded.
        "unsupported": a whole picture whose values have no known meaning as colours, or HEIC or AVIF without a
          package that opens it.
    """

    def __init__(self, reason: str, message: str):
        # Both, so that the exception survives pickling on its way out of a worker process.
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode(data: bytes, *, max_pixels: int, min_side: int, max_ratio: float = math.inf) -> Image.Image:
    """A picture file as it is meant to be seen: upright, in sRGB, on white.

    Reads what `picture_formats` lists; of several frames or pages the first. EXIF orientation is applied, an embedded
    colour profile converted to sRGB (one that is broken or made for another kind of pixels is ignored), transparency
    composited over white, and 16 bits per channel are scaled to 8.

    Args:
      data: the whole file.
      max_pixels: the most height·width to decode. Pillow's own limit, twice `PIL.Image.MAX_IMAGE_PIXELS`, holds too.
      min_side: the least height and width.
      max_ratio: the most that the longer side may have of the shorter.

    Returns:
      The picture in mode "RGB", not resized.

    Raises:
      BadImage: the file will not do; see its reason. Whatever the bytes, nothing else is raised.
      InputError: max_pixels or min_side is below 1.
    """
    if max_pixels < 1 or min_side < 1:
        raise InputError(f"decode needs max_pixels and min_side of at least 1, not {max_pixels!r} and {min_side!r}")
    image = _open(data)
    width, height = image.size
    if min(width, height) < min_side:
        raise BadImage("too-small", f"{width}×{height} pixels, at least {min_side} a side are wanted")
    if width * height > max_pixels:
        raise BadImage("too-large", f"{width}×{height} pixels, at most {max_pixels} are allowed")
    if max(image.size) > max_ratio * min(image.size):
        raise BadImage("too-long", f"{width}×{height} pixels, longer than {max_ratio:g}:1")
    try:
        image.load()
        if not _has_known_meaning(image):
            raise BadImage("unsupported", f"{image.format} with pixels of mode {image.mode}")
        colour, alpha = _split_alpha(image)
        rgb = _to_srgb(colour, image.info.get("icc_profile"))
        if alpha is not None:
            over_white = Image.new("RGB", rgb.size, "white")
            over_white.paste(rgb, mask=alpha)
            rgb = over_white
        # Only now: Pillow's TIFF reader turns the picture upright as it loads, and drops the tag.
        method = _to_upright(image)
        return rgb if method is None else rgb.transpose(method)
    except BadImage:
        raise
    except Exception as error:  # Decoders meet broken data with some ten kinds of exceptions, and Pillow lists none.
        raise BadImage("damaged", f"{image.format} of {len(data)} bytes: {_words(error)}") from error


def fit(image: Image.Image, bucket: Bucket) -> np.ndarray:
    """The largest centred part of `image` that has the bucket's shape, resized to the bucket.

    The same picture as resizing to cover the bucket and cropping its centre, as the reference does in training
    (spec §6.3), but cut out at fractions of a pixel: the reference rounds the covering size down, which stretches the
    picture by up to a pixel. Bicubic, widened to the scale when shrinking, so that nothing aliases. Smaller pictures
    are enlarged.

    Args:
      image: a picture from `decode`.
      bucket: the size wanted.

    Returns:
      uint8[bucket.height, bucket.width, 3].

    Raises:
      InputError: the picture's mode is not "RGB".
    """
    if image.mode != "RGB":
        raise InputError(f"fit takes a picture of mode RGB, such as decode returns, not {image.mode}")
    scale = max(bucket.width / image.width, bucket.height / image.height)
    # Rounding may put the sides a hair over the picture's, which Pillow refuses.
    width, height = min(bucket.width / scale, image.width), min(bucket.height / scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    fitted = image.resize(
        (bucket.width, bucket.height),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
        # Shrinking sixfold or more starts with the means of whole pixels, down to three times the size wanted or more:
        # up to four times as fast, and half a level of 255 (rms) away from the bicubic filter alone.
        reducing_gap=3.0,
    )
    return np.asarray(fitted)


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8[...] as f32[...] in [-1, 1], what the autoencoders take; `images.to_uint8` is the inverse."""
    return np.asarray(pixels, np.float32) / np.float32(127.5) - np.float32(1.0)


def _words(error: Exception) -> str:
    """Pillow's words, without the address of its buffer: the same file gives the same message, always. And without the
    bytes that it found, which may be of a file that is no picture."""
    return _BYTES.sub("b'...'", _ADDRESS.sub("", repr(error)))


def _open(data: bytes) -> Image.Image:
    """Reads the header alone."""
    try:
        return Image.open(io.BytesIO(data), formats=formats_of(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning where those are errors
        raise BadImage("too-large", str(error)) from error
    except Exception as error:
        if is_heif(data) and "HEIF" not in formats():
            raise BadImage(
                "unsupported", "a HEIC picture, which needs one more package: pip install pillow-heif"
            ) from None
        if data[4:12] in _AVIF and "AVIF" not in formats():
            raise BadImage(
                "unsupported", "an AVIF picture, which this Pillow does not open: pip install 'pillow>=11.3'"
            ) from None
        if is_recognised(data):
            raise BadImage("damaged", f"broken header of a file of {len(data)} bytes: {_words(error)}") from error
        raise BadImage("not-an-image", f"{len(data)} bytes that begin like none of {', '.join(formats())}") from None


def _has_known_meaning(image: Image.Image) -> bool:
    if image.mode in _SIXTEEN_BIT_MODES and isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow neither scales 12 bits to 16 nor turns round what counts up from white.
        tags = image.tag_v2
        return tags.get(ExifTags.Base.BitsPerSample) == (16,) and (
            tags.get(ExifTags.Base.PhotometricInterpretation) == 1
        )
    if image.mode == "I":
        return image.format == "PPM"  # Scaled to 16 bits, as no other format's are.
    return image.mode in _EIGHT_BIT_MODES + _SIXTEEN_BIT_MODES


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L, RGB or CMYK, and the alpha channel in mode L where there is one."""
    if image.mode in (*_SIXTEEN_BIT_MODES, "I"):
        # Image.convert would clip at 255. 65535 = 255·257, and 128 rounds to nearest.
        levels = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        key = image.info.get("transparency")
        return grey, None if key is None else Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.getchannel("R") if is_grey else rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if is_grey else "RGB"), None


def _to_srgb(colour: Image.Image, icc_profile: bytes | None) -> Image.Image:
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), colour.mode, "RGB")
            # Most profiles on the web are sRGB's own, and applying one takes longer than decoding a JPEG.
            if not _changes_nothing(transform, colour.mode):
                return transform.apply(colour)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass
    return colour.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether sample colours move by at most one level of 255."""
    if mode not in ("L", "RGB"):
        return False
    samples = _samples(mode)
    before, after = (
        np.asarray(image, np.int16) for image in (samples.convert("RGB"), ImageCms.applyTransform(samples, transform))
    )
    return np.abs(before - after).max() <= 1


@functools.cache
def _samples(mode: str) -> Image.Image:
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))


def _to_upright(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Broken EXIF raises as many kinds of exceptions as broken pixels, and the picture may be whole.
        return None
