"""Picture files that a command gives to draw from, and what becomes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from pixart_jax.data.buckets import RESOLUTIONS
from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_bytes
from pixart_jax.generation.canvas import Canvas, parse_aspect_ratio
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import (
    as_finished,
    beside,
    check_start,
    check_strength,
    image_to_image,
    inpainting,
    latents_of,
    mask_as_finished,
    paste_back,
    reference_canvas,
)

_MAX_BYTES, _MAX_PIXELS = 1 << 30, 1 << 27
# A picture that is to be kept in part, or only near.
_INPAINTING, _NEAR = 1.0, 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What is given to draw from.

    Attributes:
      picture: uint8[H, W, 3].
      mask: bool[H, W], True where it is drawn anew; None draws near all of it.
      strength: see `starts.image_to_image`.
      keep_pixels: whether what is outside the mask gets the picture's own pixels in the end.
      strength_name: what an error calls it.
      is_reference: the picture is beside those that are drawn, as the left half of a canvas twice as wide.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    strength: float = 1.0
    keep_pixels: bool = False
    is_reference: bool = False
    strength_name: str = "--strength"

    def shape(self, asked: dict[str, Any], resolution: int) -> dict[str, Any]:
        """The settings of `Request` that say how large pictures are drawn.

        Where nobody says, the picture does: its aspect ratio, and where its pixels are kept its size. A reference
        doubles the width.

        Args:
          asked: those that are asked for.
          resolution: of the model.

        Raises:
          InputError: the model has no such canvas.
        """
        height, width = self.picture.shape[:2]
        found = dict(asked)
        size = asked["size"] or resolution
        if asked["aspect_ratio"] is None and asked["height"] is None and asked["width"] is None:
            if self.keep_pixels:
                found |= {"height": height, "width": width}
            elif size in RESOLUTIONS:
                found["aspect_ratio"] = (width, height)
        if self.is_reference:
            if size not in RESOLUTIONS:
                raise InputError(
                    f"a reference needs a canvas twice as wide, and there are no aspect ratios at {size} pixels, only "
                    f"at {', '.join(map(str, RESOLUTIONS))}"
                )
            if found["width"] is not None:
                found["width"] *= 2
            elif found["aspect_ratio"] is not None:
                found["aspect_ratio"] = (2.0, parse_aspect_ratio(found["aspect_ratio"]))
        return found

    def about(self) -> dict[str, Any]:
        """What is to be told of it beside a picture that was drawn from it."""
        told: dict[str, Any] = {"reference" if self.is_reference else "from": _digest(self.picture)}
        if not self.is_reference:
            told["strength"] = self.strength
        if self.mask is not None:
            told |= {"mask": _digest(self.mask), "paste_back": self.keep_pixels}
        return told

    def latents(self, pipeline: TextToImage, request: Request) -> np.ndarray:
        """What `begin` takes: of the picture, on the request's canvas."""
        check_start(pipeline, request, self.strength, self.strength_name)
        canvas = request.canvas(pipeline.resolution)
        picture = reference_canvas(self.picture, canvas) if self.is_reference else self.picture
        return latents_of(pipeline, request, picture)

    def begin(self, pipeline: TextToImage, request: Request, latents: np.ndarray) -> Request:
        """The request with its start."""
        if self.is_reference:
            start = beside(pipeline, request, latents)
        elif self.mask is None:
            start = image_to_image(pipeline, request, latents, self.strength)
        else:
            mask = mask_as_finished(self.mask, request.canvas(pipeline.resolution))
            start = inpainting(pipeline, request, latents, mask, self.strength)
        return dataclasses.replace(request, start=start)

    def finish(self, drawn: np.ndarray, canvas: Canvas) -> np.ndarray:
        """The picture uint8[height, width, 3] that is kept of one that was drawn."""
        if self.is_reference:
            return drawn[:, drawn.shape[1] // 2 :]
        if not self.keep_pixels or self.mask is None:
            return drawn
        return paste_back(drawn, as_finished(self.picture, canvas), mask_as_finished(self.mask, canvas))


def read_given(
    image: pathlib.Path | None,
    mask: pathlib.Path | None = None,
    reference: pathlib.Path | None = None,
    *,
    strength: float | None = None,
    keep_pixels: bool = False,
) -> Given | None:
    """What a command gives by its options --image, --mask, --reference, --strength and --paste-back; None if nothing.

    Raises:
      InputError: options that do not go together, a file that cannot be read, a mask of another size or without white.
    """
    for option, value, needs, there in (
        ("--mask", mask, "--image", image),
        ("--strength", strength, "--image", image),
        ("--paste-back", keep_pixels or None, "--mask", mask),
    ):
        if value is not None and there is None:
            raise InputError(f"{option} needs {needs}; name that too, or leave {option} out")
    if image is not None and reference is not None:
        raise InputError("--image and --reference do not go together; leave one of them out")
    if strength is not None:
        check_strength(strength, "--strength")
    if reference is not None:
        return Given(read_picture(reference, "--reference"), is_reference=True)
    if image is None:
        return None
    picture = read_picture(image, "--image")
    name = "--strength (by default)" if strength is None else "--strength"
    if mask is None:
        return Given(picture, strength=strength or _NEAR, strength_name=name)
    return Given(picture, read_mask(mask, "--mask", picture), strength or _INPAINTING, keep_pixels, strength_name=name)


def read_picture(path: pathlib.Path, option: str) -> np.ndarray:
    """A picture file as uint8[H, W, 3], upright and in sRGB; raises InputError, which names the option, for others."""
    cure = f"{option} takes a picture such as a PNG or a JPEG"
    try:
        image = decode(read_bytes(path, cure, _MAX_BYTES), max_pixels=_MAX_PIXELS, min_side=1)
    except BadImage as error:
        raise InputError(f"{option} {path} cannot be used: {error}; {cure}") from error
    return np.asarray(image)


def read_mask(path: pathlib.Path, option: str, picture: np.ndarray) -> np.ndarray:
    """A mask file bool[H, W] for a picture uint8[H, W, 3]: True where it is white, from half the brightness on.

    Raises:
      InputError: it cannot be read, is of another size than the picture, or has no white.
    """
    levels = read_picture(path, option)
    if levels.shape != picture.shape:
        raise InputError(
            f"{option} {path} has {levels.shape[1]}x{levels.shape[0]} pixels, the picture "
            f"{picture.shape[1]}x{picture.shape[0]}; make it as large as the picture"
        )
    # Of grey exactly its level; of colours their brightness (ITU-R 601-2).
    mask = levels @ np.array([299, 587, 114]) >= 127500
    if not mask.any():
        seen = f"dark, {levels.max()} of 255 at most" if levels.any() else "all black"
        raise InputError(f"{option} {path} is {seen}, so that nothing would be drawn anew; make that white")
    return mask


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:16]
