"""Pictures as CLIP sees them. Implementations differ, and so do the features: a result says which.

| name                  | resize                                      | cut to a square | as                           |
|-----------------------|---------------------------------------------|-----------------|------------------------------|
| `transformers`        | bicubic, antialiased, by weights of 16 bits | after           | transformers 5, torchmetrics |
| `transformers-pillow` | Pillow's bicubic                            | after           | transformers, no torchvision |
| `openai`              | Pillow's bicubic                            | after, rounded  | openai/CLIP, T2I-CompBench   |
| `cmmd`                | Pillow's bicubic                            | before          | CMMD's tool                  |
| `cmmd-stretch`        | bicubic, not antialiased, both sides apart  | not             | CMMD's embedding by itself   |

Sizes, mean and deviation are those of preprocessor_config.json, or OpenAI's.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pixart_jax.conversion.arrays import read_json
from pixart_jax.errors import InputError
from pixart_jax.evaluators.torch_resize import resize_float, resize_uint8

# What features are compared with those of captions by, and what CMMD is measured by.
CLIP_PREPROCESSINGS = ("transformers", "transformers-pillow", "openai")
CMMD_PREPROCESSINGS = ("cmmd", "cmmd-stretch")
# Of transformers' folder of a CLIP.
CONFIG = "preprocessor_config.json"

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = int(Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class ClipPreprocessing:
    """What is done to each picture.

    Attributes:
      name: one of CLIP_PREPROCESSINGS or CMMD_PREPROCESSINGS.
      image_size: pixels along each side of what comes out.
      resize: to that many along the short side, or to (height, width).
      mean, std: of each channel, of values from 0 to 1.
    """

    name: str
    image_size: int
    resize: int | tuple[int, int]
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """One picture as the network takes it.

        Args:
          picture: uint8[H, W, 3].

        Returns:
          f32[image_size, image_size, 3], normalised.

        Raises:
          InputError: no picture of that shape and type.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise InputError(f"a picture must be uint8[H, W, 3], not {picture.dtype}{list(picture.shape)}")
        values = self._resized(picture).astype(np.float32)
        mean, std = (np.array(values, np.float32) * np.float32(255) for values in (self.mean, self.std))
        return (values - mean) / std

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        """uint8 or f32[image_size, image_size, 3] of 0 to 255."""
        size = self.image_size
        if self.name == "cmmd-stretch":
            return resize_float(picture.astype(np.float32) / np.float32(255), size, size) * np.float32(255)
        if self.name == "cmmd":
            side = min(picture.shape[:2])
            return _pillow(_crop(picture, side, rounded=False), size, size)
        height, width = self._target(*picture.shape[:2])
        resized = (
            resize_uint8(picture, height, width) if self.name == "transformers" else _pillow(picture, height, width)
        )
        return _crop(resized, size, rounded=self.name == "openai")

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = self.resize, int(self.resize * max(height, width) / min(height, width))
        return (long, short) if width <= height else (short, long)


def _pillow(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _crop(picture: np.ndarray, size: int, *, rounded: bool) -> np.ndarray:
    """The middle square."""
    top, left = (round((side - size) / 2) if rounded else (side - size) // 2 for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]


def read_clip_preprocessing(folder: pathlib.Path, image_size: int, name: str) -> ClipPreprocessing:
    """What a CLIP's folder says of how pictures are prepared for it.

    Args:
      folder: with preprocessor_config.json; without one it is prepared as OpenAI's CLIPs are.
      image_size: the network's.
      name: one of CLIP_PREPROCESSINGS or CMMD_PREPROCESSINGS.

    Raises:
      InputError: the file is damaged, says something that is not done here, or is another network's.
    """
    known = (*CLIP_PREPROCESSINGS, *CMMD_PREPROCESSINGS)
    if name not in known:
        raise InputError(f"preprocessing {name!r} is not known; choose from {', '.join(known)}")
    path = folder / CONFIG
    config = read_json(path) if path.exists() else {}
    problems = [
        f"{key} is {config[key]!r}, not true"
        for key in ("do_resize", "do_rescale", "do_normalize")
        if config.get(key) not in (None, True)
    ]
    if config.get("resample") not in (None, _BICUBIC):
        problems.append(f"resample is {config['resample']!r}, not {_BICUBIC}, which is bicubic")
    factor = config.get("rescale_factor")
    if factor is not None and not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6):
        problems.append(f"rescale_factor is {factor!r}, not 1/255")
    mean, std = (
        _three(config, key, default, problems) for key, default in (("image_mean", _MEAN), ("image_std", _STD))
    )
    resize = _size(config, "size", image_size, problems)
    crop: int | tuple[int, int] | None = (image_size, image_size)
    if config.get("do_center_crop") is not False:
        crop = _size(config, "crop_size", image_size, problems)
    elif resize != crop:
        problems.append(f"do_center_crop is false, and size is not {image_size} by {image_size}")
    if crop not in (image_size, (image_size, image_size)):
        problems.append(f"crop_size is {config.get('crop_size')!r}, and the network takes {image_size}")
    if min(np.atleast_1d(resize)) < image_size:
        problems.append(f"size is {config.get('size')!r}, less than the {image_size} that are cut out of it")
    if not all(value > 0 for value in std):
        problems.append(f"image_std is {config.get('image_std')!r}, not positive")
    if problems:
        raise InputError(
            f"{path}: pictures cannot be prepared so; take the folder of the CLIP as it was published\n  "
            + "\n  ".join(problems)
        )
    return ClipPreprocessing(name, image_size, resize, mean, std)


def _size(config: Mapping[str, Any], key: str, default: int, problems: list[str]) -> int | tuple[int, int]:
    """Pixels along the short side, or (height, width)."""
    found = config.get(key)
    if found is None:
        return default
    if isinstance(found, Mapping):
        keys = {name for name, value in found.items() if value is not None}
        if keys == {"height", "width"} and all(_positive(found[name]) for name in keys):
            return found["height"], found["width"]
        found = found["shortest_edge"] if keys == {"shortest_edge"} else None
    if isinstance(found, int) and _positive(found):
        return found
    problems.append(f"{key} is {config[key]!r}, neither a number of pixels, nor a shortest_edge, nor height and width")
    return default


def _three(config: Mapping[str, Any], key: str, default: tuple[float, ...], problems: list[str]) -> tuple[float, ...]:
    found = config.get(key)
    if found is None:
        return default
    if not (isinstance(found, list) and len(found) == 3 and all(isinstance(x, int | float) for x in found)):
        problems.append(f"{key} is {found!r}, not three numbers")
        return default
    return tuple(map(float, found))


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 14
