"""Whether two things that were found in a picture stand to each other as the prompt says.

Source: T2I-CompBench, §4.2; its `UniDet_eval/2D_spatial_eval.py`. Boxes are (left, top, right, bottom) in pixels of the
picture as the benchmark's detector sees it (`detections.seen_size`), y down.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pixart_jax.evaluators.compbench.detections import Box, Detection, first_of
from pixart_jax.evaluators.compbench.language import Word, text_of

# The first that a prompt holds counts.
LOCALITIES = (
    "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of",
    "on top of",
)  # fmt: skip
_BESIDE = ("next to", "on side of", "near")
# Where the second thing's centre lies, seen from the first's: the axis (x, y) and its sign.
_DIRECTIONS = {
    "on the right of": (0, -1),
    "on the left of": (0, 1),
    "on the bottom of": (1, -1),
    "on the top of": (1, 1),
}
_PREPOSITIONS = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
_PEOPLE = ("girl", "boy", "man", "woman")
# Pixels within which things are beside each other, and the overlap from which they are less than apart.
_NEAR, _APART = 150, 0.1
_LEAST = 0.5


def locality_of(prompt: str) -> str | None:
    return next((locality for locality in LOCALITIES if locality in prompt), None)


def as_detected(name: str) -> str:
    """What the detector calls a thing."""
    return "person" if name in _PEOPLE else name


def pair_of(words: Sequence[Word]) -> tuple[str, str] | None:
    """The two things of a prompt of the spatial category: its first and its last noun; None without any."""
    nouns = [word.text for word in words if word.kind == "NOUN"]
    return (as_detected(nouns[0]), as_detected(nouns[-1])) if nouns else None


def complex_pair_of(words: Sequence[Word]) -> tuple[str, str] | None:
    """The two things of a prompt of the complex category; None unless its prepositions have two things in all.

    Before a preposition it is the nearest noun, also a proper one. After it, it is the next noun; where there is none,
    the first proper noun that ends a name, and not the prompt.
    """
    found = []
    for start in range(len(words)):
        length = next((n for n in (3, 2, 1) if text_of(words[start : start + n]) in _PREPOSITIONS), None)
        if length is None:
            continue
        before, after = words[:start][::-1], words[start + length :]
        found += [word.text for word in before if word.kind in ("NOUN", "PROPN")][:1]
        nouns = [word.text for word in after if word.kind == "NOUN"]
        names = [
            word.text
            for word, following in itertools.pairwise(after)
            if word.kind == "PROPN" and following.kind != "PROPN"
        ]
        found += (nouns or names)[:1]
    return (as_detected(found[0]), as_detected(found[1])) if len(found) == 2 else None


def overlap(first: Box, second: Box) -> float:
    """Intersection over union; 0 where both are empty."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def position_score(locality: str | None, first: Box, second: Box) -> float:
    """In [0, 1]: how well the boxes have the locality. "on top of" has none, as in the benchmark."""
    between = [(second[axis] + second[axis + 2]) / 2 - (first[axis] + first[axis + 2]) / 2 for axis in (0, 1)]
    distances = [abs(part) for part in between]
    if locality in _BESIDE:
        return 1.0 if min(distances) < _NEAR else _NEAR / max(distances)
    if locality not in _DIRECTIONS:
        return 0.0
    axis, sign = _DIRECTIONS[locality]
    if between[axis] * sign <= 0 or distances[axis] <= distances[1 - axis]:
        return 0.0
    common = overlap(first, second)
    return 1.0 if common < _APART else _APART / common


def spatial_score(locality: str | None, first: Detection | None, second: Detection | None) -> float:
    """Half by how surely the two were found, half by their position; below a half it is nothing."""
    score = 0.25 * sum(found.score for found in (first, second) if found)
    if first and second:
        score += position_score(locality, first.box, second.box) / 2
    return score if score >= _LEAST else 0.0


def score_picture(prompt: str, pair: tuple[str, str] | None, detections: Sequence[Detection]) -> float:
    """Of a picture in which `detections` were found; a prompt without two things has none."""
    if pair is None:
        return 0.0
    first, second = (first_of(detections, name) for name in pair)
    return spatial_score(locality_of(prompt), first, second)
