"""The size that a picture is drawn at, and the one it is given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixart_jax.data.buckets import RESOLUTIONS, Bucket, nearest_bucket, sampling_buckets
from pixart_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What a picture is drawn at, and what it is then resized and cropped to.

    Attributes:
      bucket: a size that the model knows, in pixels.
      size: side in pixels of the square whose tokens every bucket of the resolution is padded to.
      height, width: of the finished picture.
    """

    bucket: Bucket
    size: int
    height: int
    width: int


def choose_canvas(
    resolution: int,
    *,
    size: int | None = None,
    aspect_ratio: str | float | Sequence[float] | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Canvas:
    """The bucket to draw in, of those that the reference samples at (spec §6.4).

    Args:
      resolution: the model's own, in pixels along a side of the square.
      size: another resolution to draw at; None is the model's own.
      aspect_ratio: "WIDTH:HEIGHT", such as "16:9", the pair (16, 9), or the number width/height; None is a square.
      height, width: exact pixels of the picture, in place of an aspect ratio: it is drawn in the bucket of the nearest
        ratio, resized to cover and cropped, as in diffusers.

    Raises:
      InputError: the two ways are mixed or incomplete, a number is not positive, or the size has no buckets.
    """
    size = resolution if size is None else size
    if size not in (*RESOLUTIONS, resolution):
        raise InputError(f"size {size}: must be one of {', '.join(map(str, RESOLUTIONS))}, or the model's {resolution}")
    if height is None and width is None:
        ratio = 1.0 if aspect_ratio is None else parse_aspect_ratio(aspect_ratio)
    elif height is None or width is None:
        raise InputError("height and width go together; give both, or an aspect ratio")
    elif aspect_ratio is not None:
        raise InputError("give an aspect ratio, or height and width, not both")
    elif min(height, width) < 1:
        raise InputError(f"height and width must be positive, not {height} and {width}")
    else:
        ratio = height / width
    if size in RESOLUTIONS:
        bucket = nearest_bucket(sampling_buckets(size), ratio)
    elif ratio == 1:
        bucket = Bucket(1.0, size, size)
    else:
        raise InputError(f"there are no aspect ratios at {size} pixels, only at {', '.join(map(str, RESOLUTIONS))}")
    return Canvas(bucket, size, height or bucket.height, width or bucket.width)


def parse_aspect_ratio(given: str | float | Sequence[float]) -> float:
    """ "16:9", (16, 9) or 16 / 9, width by height, as height/width: 0.5625.

    Raises:
      InputError: not two positive numbers, or one.
    """
    sides: Any = given.split(":") if isinstance(given, str) and ":" in given else given
    try:
        width, height = (float(side) for side in (sides if np.ndim(sides) else (sides, 1)))
        ratio = height / width
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        ratio = width = math.nan
    if isinstance(given, bool) or not (math.isfinite(ratio) and ratio > 0 and width > 0):
        raise InputError(f"aspect ratio {given!r}: must be WIDTH:HEIGHT, such as 16:9")
    return ratio
