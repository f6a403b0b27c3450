"""Whether one thing is in front of another, or behind it, by a map of how near each point of the picture is.

Source: T2I-CompBench++ (Huang et al. 2025); its `UniDet_eval/3D_spatial_eval.py`. The maps are those of DPT-Hybrid that
this script writes: greater is nearer.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.detections import Box, Detection, seen_size
from pixart_jax.evaluators.compbench.spatial import overlap

LOCALITIES = ("in front of", "behind", "hidden")
_ENOUGH = 0.5


def depth_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where the benchmark's script puts the map of a picture in `folder/samples`."""
    return folder / "labels" / "depth" / folder.name / "samples" / name


def read_depth(path: pathlib.Path) -> np.ndarray:
    """f32[H, W] in [0, 1], of the size of a picture as the detector sees it.

    Raises:
      InputError: it is no picture.
    """
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {error}; make it again with the benchmark's script") from error
    return np.asarray(grey.resize(seen_size(*grey.size), Image.Resampling.BILINEAR), np.float32) / 255


def depth_score(locality: str | None, first: Box, second: Box, depths: np.ndarray) -> float:
    """In [0, 1]: how well two boxes that overlap stand one before the other.

    As in the benchmark, the mean of a box takes its columns for rows of the map, and its rows for columns.
    """
    nearer = _mean(depths, first) - _mean(depths, second)
    if not (nearer > 0 if locality == "in front of" else nearer < 0 and locality in LOCALITIES):
        return 0.0
    common = overlap(first, second)
    # Half of them in common is neither more nor less than enough there.
    return 0.0 if common == _ENOUGH else min(1.0, common / _ENOUGH)


def score_picture_in_depth(
    prompt: str, pair: tuple[str, str] | None, detections: Sequence[Detection], depths: np.ndarray
) -> float:
    """Half by how surely the two things were found, half by their places."""
    first, second = _things(detections, pair) if pair else (None, None)
    score = 0.25 * sum(found.score for found in (first, second) if found)
    if first and second:
        locality = next((locality for locality in LOCALITIES if locality in prompt), None)
        score += depth_score(locality, first.box, second.box, depths) / 2
    return score


def _things(detections: Sequence[Detection], pair: tuple[str, str]) -> tuple[Detection | None, Detection | None]:
    """Where both are found, the last of each up to there; else the first of the one. "cup" is found in "coffee cup"."""
    first: Detection | None = None
    second: Detection | None = None
    for found in detections:
        first = found if pair[0] in found.label else first
        second = found if pair[1] in found.label else second
        if first and second:
            return first, second
    one, other = (next((found for found in detections if name in found.label), None) for name in pair)
    return one, other


def _mean(depths: np.ndarray, box: Box) -> float:
    """NaN of an empty box, which is neither nearer nor farther."""
    left, top, right, bottom = (max(0, int(side)) for side in box)
    part = depths[left:right, top:bottom]
    return float(part.mean()) if part.size else float("nan")
