"""What pictures are drawn from where it is not noise alone: near another picture, around a part of it, or beside it.

request = Request("a red cat", seed=1)
latents = latents_of(pipeline, request, picture)
start = inpainting(pipeline, request, latents, mask)
images = pipeline.draw(dataclasses.replace(request, start=start))

Sources: PixArt-α's `scripts/pipeline_pixart_inpaint.py` and `pipeline_pixart_reference.py`; diffusers' image-to-image.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.decoding import fit
from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import Canvas
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request, Start
from pixart_jax.generation.values import real_number
from pixart_jax.rng import stream_key
from pixart_jax.samplers import build_sampler
from pixart_jax.tokens import DOWNSAMPLE

_SCHEDULE = linear_schedule()
# Of 255: from here on a mask is white.
_WHITE = 128


def latents_of(pipeline: TextToImage, request: Request, picture: np.ndarray) -> np.ndarray:
    """A picture's unscaled latents f32[h, w, C] on the request's canvas, drawn from the autoencoder's distribution.

    Args:
      picture: uint8[H, W, 3] of any size; it is resized and cropped as the finished picture is.
    """
    canvas = request.canvas(pipeline.resolution)
    mean, std = pipeline.parts.encode_pictures(_onto(as_finished(picture, canvas), canvas)[None])
    noise = jax.random.normal(stream_key(request.first_seed, "picture"), mean.shape[1:])
    return mean[0] + std[0] * np.asarray(noise)


def image_to_image(pipeline: TextToImage, request: Request, latents: np.ndarray, strength: float) -> Start:
    """Pictures near another one.

    Args:
      latents: as `latents_of` gives them.
      strength: which share of the way from noise is gone, in (0, 1].

    Raises:
      InputError: a strength that leaves no step.
    """
    check_start(pipeline, request, strength)
    return Start(_tokens(pipeline, request, latents), strength)


def inpainting(
    pipeline: TextToImage, request: Request, latents: np.ndarray, mask: np.ndarray, strength: float = 1.0
) -> Start:
    """Pictures that keep a part of another one: after every step it is put back, with the noise that drawing began
    with.

    Args:
      latents: as `latents_of` gives them.
      mask: bool[height, width] of the finished picture, as `mask_as_finished` gives it; True is drawn anew. A cell of
        8×8 pixels goes by its first pixel, as in the reference.
      strength: as in `image_to_image`; 1 begins with pure noise.

    Raises:
      InputError: a strength that leaves no step, or a mask of which no cell is left.
    """
    check_start(pipeline, request, strength)
    canvas = request.canvas(pipeline.resolution)
    cells = _onto(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), canvas)[::DOWNSAMPLE, ::DOWNSAMPLE, 0]
    if not (cells >= _WHITE).any():
        raise InputError(
            f"the mask has nothing white at the first pixel of any {DOWNSAMPLE}x{DOWNSAMPLE} pixels of the "
            f"{canvas.bucket.width}x{canvas.bucket.height} that are drawn, so that nothing would be drawn anew; make "
            "its white larger"
        )
    return _keeping(pipeline, request, latents, cells >= _WHITE, strength)


def beside(pipeline: TextToImage, request: Request, latents: np.ndarray) -> Start:
    """Pictures whose left half is that of another one, from which the right half takes what it shows.

    Args:
      latents: as `latents_of` gives them of `reference_canvas`.
    """
    cells = np.zeros(latents.shape[:2], bool)
    cells[:, latents.shape[1] // 2 :] = True
    return _keeping(pipeline, request, latents, cells, 1.0)


def reference_canvas(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A picture uint8[H, W, 3] as the left half of a finished one, uint8[height, width, 3], that is white."""
    page = np.full((canvas.height, canvas.width, 3), 255, np.uint8)
    half = canvas.width // 2
    page[:, :half] = fit(Image.fromarray(picture), Bucket(1.0, canvas.height, half))
    return page


def as_finished(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """The centred part of a picture uint8[H, W, 3] that the finished one shows, uint8[height, width, 3]: itself where
    it is of that size."""
    return fit(Image.fromarray(picture), Bucket(1.0, canvas.height, canvas.width))


def mask_as_finished(mask: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Likewise of a mask bool[H, W], bool[height, width]."""
    return as_finished(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), canvas)[..., 0] >= _WHITE


def paste_back(drawn: np.ndarray, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pictures uint8[..., height, width, 3] with the pixels of another one, uint8[height, width, 3], outside the mask
    bool[height, width]."""
    return np.where(mask[..., None], drawn, picture)


def keep_outside(mask, known, noise, x, t, _):
    """A `samplers.steps.Correct`: outside the mask, x becomes the known picture at its own noise level.

    Args:
      mask: bool[B, ...], True where x stays.
      known, noise: f32[B, ...]; of one element each all that is drawn, the same at every step.
    """
    return _known_outside(_SCHEDULE, mask, known, noise, x, t)


def keep_outside_in_flow(mask, known, noise, x, t, _):
    """`keep_outside` of a sampler of rectified flow."""
    return _known_outside(FlowSchedule(), mask, known, noise, x, t)


def _known_outside(schedule, mask, known, noise, x, t):
    alpha, sigma = noise_level(schedule, t)
    return jnp.where(mask, x, alpha * known + sigma * noise)


def _keeping(pipeline: TextToImage, request: Request, latents: np.ndarray, cells: np.ndarray, strength: float) -> Start:
    """A start that keeps the latents where cells bool[h, w] is False."""
    known = _tokens(pipeline, request, latents)
    mask = _tokens(pipeline, request, np.broadcast_to(cells[..., None].astype(np.float32), latents.shape)) > 0
    schedule = pipeline.parts.target.schedule(pipeline.manner(request).sampler)
    keep = keep_outside_in_flow if isinstance(schedule, FlowSchedule) else keep_outside
    correct = jax.tree_util.Partial(keep, mask, known, pipeline.noise_of(request))
    return Start(known if strength < 1 else None, strength, correct)


def _tokens(pipeline: TextToImage, request: Request, latents: np.ndarray) -> np.ndarray:
    """Of latents f32[h, w, C], for each picture of the request."""
    one = pipeline.tokens_of(latents[None], request.alone())
    return np.broadcast_to(one, (request.count, *one.shape[1:]))


def check_start(pipeline: TextToImage, request: Request, strength: float, name: str = "strength") -> None:
    """Raises InputError, which calls it by its name, where a request's sampler and number of steps cannot begin at a
    strength."""
    manner, start = pipeline.manner(request), check_strength(strength, name)
    try:
        build_sampler(manner.sampler, pipeline.parts.target.schedule(manner.sampler), manner.num_steps, start=start)
    except InputError as error:
        # Samplers know it as their start.
        raise InputError(re.sub(r"\bstart\b", name, str(error))) from error


def check_strength(strength: float, name: str = "strength") -> float:
    """A share of the way from noise; raises InputError unless it lies in (0, 1]."""
    value = real_number(name, strength)
    if not 0 < value <= 1:
        raise InputError(
            f"{name} = {value:g}: must lie in (0, 1]; small keeps the picture, 1 draws it anew from pure noise"
        )
    return value


def _onto(finished: np.ndarray, canvas: Canvas) -> np.ndarray:
    """What is drawn, uint8[bucket's height, width, 3], so that the picture made of it by resizing and cropping is
    `finished`.

    What is cropped away again repeats the edges.
    """
    bucket = canvas.bucket
    if finished.shape[:2] == (bucket.height, bucket.width):
        return finished
    scale = max(canvas.width / bucket.width, canvas.height / bucket.height)
    # Beyond each edge of the finished picture, in its pixels.
    over_x = max(0.0, (bucket.width * scale - canvas.width) / 2)
    over_y = max(0.0, (bucket.height * scale - canvas.height) / 2)
    pad_x, pad_y = math.ceil(over_x), math.ceil(over_y)
    padded = np.pad(finished, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="edge")
    box = (pad_x - over_x, pad_y - over_y, pad_x + canvas.width + over_x, pad_y + canvas.height + over_y)
    image = Image.fromarray(padded)
    return np.asarray(image.resize((bucket.width, bucket.height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
