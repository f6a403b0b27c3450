"""BLIP-VQA's questions: whether each thing that a prompt names is seen in the picture, with its attributes.

Source: T2I-CompBench, §4.1; its `BLIPvqa_eval/BLIP_vqa.py` and `data/utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

MAX_QUESTIONS = 8
# Parts of relations, which are no things to be seen.
_NO_THINGS = ("top", "the side", "the left", "the right")
_DROPPED = re.compile(r"[.!\"()*#:;~]")
_MAX_WORDS = 50


def questions_of(noun_phrases: Sequence[str]) -> tuple[str, ...]:
    """A question per noun phrase of a prompt, at most eight."""
    things = [phrase for phrase in noun_phrases if phrase not in _NO_THINGS]
    return tuple(clean_question(f"{thing}?") for thing in things[:MAX_QUESTIONS])


def clean_question(text: str) -> str:
    """As BLIP was trained on them: in lower case, without some punctuation, at most 50 words."""
    return " ".join(_DROPPED.sub("", text.lower()).rstrip(" ").split(" ")[:_MAX_WORDS])


def attribute_score(probabilities: Sequence[float]) -> float:
    """The product of the probabilities of "yes", each rounded to four places, and rounded so itself; 1 of none."""
    product = np.float32(1)
    for probability in probabilities:
        product *= np.float32(f"{probability:.4f}")
    return float(f"{product:.4f}")
