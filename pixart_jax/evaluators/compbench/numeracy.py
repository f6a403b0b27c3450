"""Whether a picture holds as many of each thing as the prompt says.

Source: T2I-CompBench++ (Huang et al. 2025); its `UniDet_eval/numeracy_eval.py` and `examples/dataset/new_objects.txt`.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.detections import Box, Detection

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
# What the detector calls some of the things; the third is spelt as the benchmark spells it, so that it never applies.
_AS_DETECTED = {
    "boy": "person", "girl": "person", "man": "person", "woman": "person", "ship": "boat", "telivision": "tv",
    "goldfish": "fish", "painting": "picture",
}  # fmt: skip
_SAME = 0.9


def read_things(path: pathlib.Path) -> dict[str, str]:
    """The benchmark's things by both their forms, singular and plural, to the singular: lines of "mouse - mice".

    Raises:
      InputError: the file cannot be read, or a line is another.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; it lies in the benchmark's examples/dataset") from error
    things: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        forms = [form.strip().lower() for form in line.split(" - ")]
        if len(forms) < 2:
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not as in 'mouse - mice'; copy it again")
        for form in forms[:2]:
            things.setdefault(form, forms[0])
    return things


def detected_name(thing: str) -> str:
    """What the detector calls a thing."""
    return _AS_DETECTED.get(thing, thing)


def counts_of(words: Sequence[str], things: Mapping[str, str]) -> list[tuple[str, int]]:
    """Each thing that a prompt counts, with how many of it there should be.

    Args:
      words: of the prompt.
      things: see `read_things`.
    """
    found = []
    for index, word in enumerate(words):
        if word not in _NUMBERS:
            continue
        two = " ".join(words[index + 1 : index + 3])
        name = two if two in things else words[index + 1] if index + 1 < len(words) else ""
        if name in things:
            found.append((things[name], _NUMBERS[word]))
    return found


def is_same(first: Box, second: Box) -> bool:
    """Whether two boxes are of one thing: they cover each other, or one lies in the other, by more than nine tenths."""

    def size(box: Box) -> float:
        return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)

    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]) + 1)
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]) + 1)
    common = width * height
    wholes = (size(first) + size(second) - common, size(first), size(second))
    return any(common / whole > _SAME for whole in wholes)


def labels_of(detections: Sequence[Detection]) -> list[str]:
    """The labels of the things that were found, each thing once."""
    kept: list[Detection] = []
    for found in detections:
        if not any(found.label == other.label and is_same(found.box, other.box) for other in kept):
            kept.append(found)
    return [found.label for found in kept]


def numeracy_score(wanted: Sequence[tuple[str, int]], detections: Sequence[Detection]) -> float:
    """Each thing counts the same: half of it for being there at all, half for being there as often as wanted."""
    labels = labels_of(detections)
    score = 0.0
    for thing, count in wanted:
        name = detected_name(thing)
        if name not in labels:
            # "wine bottle" is a bottle.
            labels = [name if name in label else label for label in labels]
        there = Counter(labels)[name]
        score += (0.5 * (there > 0) + 0.5 * (there == count)) / len(wanted)
    return score
