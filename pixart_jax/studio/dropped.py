"""Files that visitors bring: each is looked at within bounds, and is data whatever its name says."""

from __future__ import annotations

import pathlib
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import parse, read_bytes
from pixart_jax.samplers.program import DROPPED_PATH
from pixart_jax.studio.settings import CHUNK, RATIOS

# Of a file, of what a picture is decoded to, and of a text chunk.
MAX_BYTES, MAX_PIXELS, _MAX_CHARACTERS = 32 << 20, 1 << 24, 1 << 16
_SAME_NAMES = ("prompt", "negative_prompt", "seed", "sampler", "num_steps", "guidance_scale", "size")
_NUMBERS = {"num_steps": int, "guidance_scale": float, "size": int}


def settings_in(path: pathlib.Path) -> dict[str, Any]:
    """What the text chunks of a PNG say it was drawn with, unchecked: of the studio's own, or of tools.sample's.

    Its pixels are not decoded.

    Raises:
      InputError: no PNG, a damaged or too large one, or it says nothing.
    """
    chunks = _chunks(path)
    if CHUNK in chunks:
        try:
            found = parse(chunks[CHUNK])
        except ValueError as error:
            raise InputError(f"the settings in this PNG are damaged: {str(error)[:200]}") from error
        if not isinstance(found, dict):
            raise InputError("the settings in this PNG are damaged: they are no JSON object")
        return found
    if "prompt" not in chunks:
        raise InputError("this PNG does not say what it was drawn with; those that were saved here do")
    found = {name: chunks[name] for name in _SAME_NAMES if name in chunks}
    if chunks.get("guidance") == DROPPED_PATH:  # "none" goes with its sampler, and "cfg" is not said.
        found["guidance"] = DROPPED_PATH
    try:
        found |= {name: kind(found[name]) for name, kind in _NUMBERS.items() if name in found}
        if {"height", "width"} <= chunks.keys():
            found["aspect_ratio"] = _nearest_ratio(int(chunks["width"]) / int(chunks["height"]))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"what this PNG was drawn with is damaged: {str(error)[:200]}") from error
    return found


def picture_in(path: pathlib.Path) -> np.ndarray:
    """A picture of any usual format as uint8[H, W, 3], upright and in sRGB.

    Raises:
      InputError: none, a damaged or too large one; by its header, before it is decoded.
    """
    try:
        image = decode(_bytes(path), max_pixels=MAX_PIXELS, min_side=8)
    except BadImage as error:
        raise InputError(f"this picture cannot be used: {error}") from error
    return np.asarray(image)


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return read_bytes(path, "bring a PNG or a JPEG", MAX_BYTES)
    except InputError as error:
        # Where the server keeps it is nothing for visitors.
        raise InputError(str(error).replace(str(path), "the file")) from error


def _chunks(path: pathlib.Path) -> Mapping[str, str]:
    _bytes(path)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=("PNG",)) as image:
            info = dict(image.info)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise InputError("this is no PNG, or a damaged one; drop one that was saved here") from error
    texts = {str(name): str(value) for name, value in info.items() if isinstance(value, str)}
    if any(len(value) > _MAX_CHARACTERS for value in texts.values()):
        raise InputError(
            f"this PNG holds a text of more than {_MAX_CHARACTERS:,} characters; drop one that was saved here"
        )
    return texts


def _nearest_ratio(wanted: float) -> str:
    def distance(ratio: str) -> float:
        width, height = map(int, ratio.split(":"))
        return abs(np.log(width / height) - np.log(wanted))

    return min(RATIOS, key=distance)
