"""Things that a detector found in pictures, and the file that brings them here from the benchmark's own detector.

Its network needs detectron2, so that it runs elsewhere; docs/compbench.md has the lines that write this file:

    {"detector": "Unified_learned_OCIM_RS200_6x+2x", "category": "spatial", "labels": ["person", ...],
     "pictures": {"a cat near a sofa_000000.png": {"size": [479, 479], "labels": ["cat"], "scores": [0.9],
                                                   "boxes": [[12.5, 30.0, 200.0, 310.5]]}}}

`labels` is all that the detector knows; without it nothing can be said of what it does not. `size` is that of the
picture, in pixels, whose coordinates the boxes have; without it they have those of the picture as the detector sees it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import Fields, read_fields

# (left, top, right, bottom) in pixels, y down.
Box = tuple[float, float, float, float]

# Of the benchmark, by the score that is made of what they find.
OWN_DETECTORS = {
    "spatial": "Unified_learned_OCIM_RS200_6x+2x",
    "numeracy": "Unified_learned_OCIM_R50_6x+2x",
    "depth": "Unified_learned_OCIM_RS200_6x+2x",
}
# What is found less surely is not found.
LEAST_SCORE = 0.5
_SHORT, _LONG = 479, 480
_MAX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Detection:
    """label: its name; score: in [0, 1]; box: in the picture as the detector sees it."""

    label: str
    score: float
    box: Box


@dataclasses.dataclass(frozen=True)
class DetectionFile:
    """What a file says.

    Attributes:
      detector: its name.
      labels: all that it knows; None where the file does not say.
      pictures: what was found, by the pictures' names.
    """

    path: pathlib.Path
    category: str
    detector: str
    labels: frozenset[str] | None
    pictures: Mapping[str, tuple[Detection, ...]]


def seen_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a picture as the benchmark's detector sees it: the short side 479, the long one at most 480.

    Source: torchvision's Resize(479, max_size=480), with its rounding down.
    """
    short, long = min(width, height), max(width, height)
    new_short, new_long = _SHORT, int(_SHORT * long / short)
    if new_long > _LONG:
        new_short, new_long = int(_LONG * new_short / new_long), _LONG
    return (new_short, new_long) if width <= height else (new_long, new_short)


def first_of(detections: Iterable[Detection], label: str) -> Detection | None:
    return next((found for found in detections if found.label == label), None)


def missing_labels(names: Iterable[str], labels: frozenset[str] | None) -> list[str]:
    """What prompts name and a detector that knows `labels` cannot find."""
    return sorted(set(names) - labels) if labels is not None else []


def read_detections(path: pathlib.Path, names: Mapping[str, Sequence[str]]) -> DetectionFile:
    """A file of what was found in the pictures of one category.

    Args:
      names: of the pictures, by the category.

    Raises:
      InputError: the file is damaged, of another category, of other pictures, or does not have all of them.
    """
    fields = read_fields(path, "docs/compbench.md says how it is written", _MAX_BYTES)
    category = fields.text("category", choices=names)
    pictures = fields.fields("pictures")
    missing = [name for name in names[category] if name not in pictures]
    others = sorted(set(pictures) - set(names[category]))
    if missing or others:
        counts = [f"lacks {len(missing):,}, the first {missing[0]!r}"] if missing else []
        counts += [f"has {len(others):,} others, the first {others[0]!r}"] if others else []
        raise InputError(
            f"{path} is of other pictures: of the {len(names[category]):,} of {category} it {' and '.join(counts)}; "
            "detect again in those that are scored"
        )
    labels = fields.sequence("labels", str, None)
    return DetectionFile(
        path,
        category,
        fields.text("detector"),
        frozenset(labels) if labels is not None else None,
        {name: _detections_of(pictures.fields(name)) for name in names[category]},
    )


def _detections_of(fields: Fields) -> tuple[Detection, ...]:
    """Of one picture, in the file's order, as the benchmark takes the first of a name."""
    labels, boxes = fields.sequence("labels", str), fields.sequence("boxes", list)
    scores = [float(score) for score in fields.sequence("scores", (int, float))]
    if not len(labels) == len(scores) == len(boxes):
        raise fields.error("boxes", f"as many as labels ({len(labels)}) and scores ({len(scores)})")
    if not all(len(box) == 4 and all(type(side) in (int, float) for side in box) for box in boxes):
        raise fields.error("boxes", "lists of left, top, right and bottom")
    if not all(0 <= score <= 1 for score in scores):
        raise fields.error("scores", "numbers from 0 to 1")
    scale = (1.0, 1.0)
    if size := fields.sequence("size", int, None):
        if len(size) != 2 or min(size) < 1:
            raise fields.error("size", "the picture's width and height in pixels")
        seen = seen_size(size[0], size[1])
        scale = seen[0] / size[0], seen[1] / size[1]
    return tuple(
        Detection(label, score, (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]))
        for label, score, box in zip(labels, scores, boxes, strict=True)
        if score > LEAST_SCORE
    )
