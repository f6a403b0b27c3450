"""The aspect-ratio buckets PixArt trains and samples at: a few dozen picture sizes of about one number of pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pixart_jax.errors import InputError

RESOLUTIONS = (256, 512, 1024, 2048, 2880, 4096)
"""Side, in pixels, of the square bucket of every known table."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One size of pictures.

    Attributes:
      label: the reference's name for height/width, such as 0.48. It is what decides which pictures the bucket takes and
        what α's micro-condition is trained on, and it is rounded: the sides of 0.48 at 1024 px are 704×1472 = 0.4783,
        those of 4.0 at 2880 px are 5760×1408 = 4.09.
      height: in pixels.
      width: in pixels.
    """

    label: float
    height: int
    width: int


# fmt: off
_BUCKETS_1024 = tuple(Bucket(*row) for row in (
    (0.25, 512, 2048), (0.26, 512, 1984), (0.27, 512, 1920), (0.28, 512, 1856), (0.32, 576, 1792),
    (0.33, 576, 1728), (0.35, 576, 1664), (0.4, 640, 1600), (0.42, 640, 1536), (0.48, 704, 1472),
    (0.5, 704, 1408), (0.52, 704, 1344), (0.57, 768, 1344), (0.6, 768, 1280), (0.68, 832, 1216),
    (0.72, 832, 1152), (0.78, 896, 1152), (0.82, 896, 1088), (0.88, 960, 1088), (0.94, 960, 1024),
    (1.0, 1024, 1024), (1.07, 1024, 960), (1.13, 1088, 960), (1.21, 1088, 896), (1.29, 1152, 896),
    (1.38, 1152, 832), (1.46, 1216, 832), (1.67, 1280, 768), (1.75, 1344, 768), (2.0, 1408, 704),
    (2.09, 1472, 704), (2.4, 1536, 640), (2.5, 1600, 640), (2.89, 1664, 576), (3.0, 1728, 576),
    (3.11, 1792, 576), (3.62, 1856, 512), (3.75, 1920, 512), (3.88, 1984, 512), (4.0, 2048, 512),
))

_BUCKETS_2880 = tuple(Bucket(*row) for row in (
    (0.25, 1408, 5760), (0.26, 1408, 5568), (0.27, 1408, 5376), (0.28, 1408, 5184), (0.32, 1600, 4992),
    (0.33, 1600, 4800), (0.34, 1600, 4672), (0.4, 1792, 4480), (0.42, 1792, 4288), (0.47, 1920, 4096),
    (0.49, 1920, 3904), (0.51, 1920, 3776), (0.55, 2112, 3840), (0.59, 2112, 3584), (0.68, 2304, 3392),
    (0.72, 2304, 3200), (0.78, 2496, 3200), (0.83, 2496, 3008), (0.89, 2688, 3008), (0.93, 2688, 2880),
    (1.0, 2880, 2880), (1.07, 2880, 2688), (1.12, 3008, 2688), (1.21, 3008, 2496), (1.28, 3200, 2496),
    (1.39, 3200, 2304), (1.47, 3392, 2304), (1.7, 3584, 2112), (1.82, 3840, 2112), (2.03, 3904, 1920),
    (2.13, 4096, 1920), (2.39, 4288, 1792), (2.5, 4480, 1792), (2.92, 4672, 1600), (3.0, 4800, 1600),
    (3.12, 4992, 1600), (3.68, 5184, 1408), (3.82, 5376, 1408), (3.95, 5568, 1408), (4.0, 5760, 1408),
))
# fmt: on

# Labels that the reference's tables for inference leave out. They leave nothing out of 2880: the table the reference
# calls 2880_TEST holds sizes for 4096 px, at the labels of its 2048_TEST.
_NOT_SAMPLED = frozenset((0.26, 0.27, 2.89, 3.11, 3.62, 3.75, 3.88))
_NOT_SAMPLED_FROM_2048 = frozenset((0.27, 0.28, 2.89, 3.11, 3.62, 3.75, 3.88))


def training_buckets(resolution: int) -> tuple[Bucket, ...]:
    """The 40 buckets to train at `resolution`, by rising label (spec §6.4, `ASPECT_RATIO_*` of the reference).

    None has more pixels than the square bucket, so that its token count bounds them all. Sides are multiples of 16 px
    at 256, 32 at 512, 64 at 1024 and 2880, 128 at 2048, 256 at 4096. The reference has no training table for 4096 px:
    this one is 1024's times four.

    Args:
      resolution: side of the square bucket in pixels, one of RESOLUTIONS.

    Raises:
      InputError: the resolution has no table; lists those that have.
    """
    if resolution not in RESOLUTIONS:
        known = ", ".join(map(str, RESOLUTIONS))
        raise InputError(f"no aspect-ratio buckets for resolution {resolution!r}; choose one of {known}")
    if resolution == 2880:
        return _BUCKETS_2880
    return tuple(
        Bucket(bucket.label, bucket.height * resolution // 1024, bucket.width * resolution // 1024)
        for bucket in _BUCKETS_1024
    )


def sampling_buckets(resolution: int) -> tuple[Bucket, ...]:
    """The buckets of the reference's inference at `resolution`: `training_buckets` less a few extreme ones (spec §6.4).

    33 buckets; all 40 at 2880 px.

    Args:
      resolution: side of the square bucket in pixels, one of RESOLUTIONS.

    Raises:
      InputError: the resolution has no table; lists those that have.
    """
    buckets = training_buckets(resolution)
    if resolution == 2880:
        return buckets
    left_out = _NOT_SAMPLED if resolution <= 1024 else _NOT_SAMPLED_FROM_2048
    return tuple(bucket for bucket in buckets if bucket.label not in left_out)


def nearest_bucket(buckets: Sequence[Bucket], ratio: float) -> Bucket:
    """The bucket whose label is nearest to `ratio` in absolute difference; of two as near, the first (spec §6.4).

    However extreme the ratio, some bucket is nearest: callers refuse what they do not want cropped that far.

    Args:
      buckets: at least one.
      ratio: height/width of the picture, positive.

    Raises:
      InputError: no buckets, or a ratio that is not positive and finite.
    """
    if not buckets or not (math.isfinite(ratio) and ratio > 0):
        raise InputError(
            f"nearest_bucket needs at least one bucket and a positive height/width, got {len(buckets)} buckets and "
            f"ratio {ratio!r}"
        )
    return min(buckets, key=lambda bucket: abs(bucket.label - ratio))
