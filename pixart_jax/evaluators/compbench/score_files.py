"""The benchmark's files of scores: a score per picture, and their mean in a line of text beside them."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import parse, read_bytes

# Score: its folder, and the file and words of its mean.
FILES = {
    "blip": ("annotation_blip", "blip_vqa_score.txt", "BLIP-VQA score:{mean}"),
    "spatial": ("labels/annotation_obj_detection_2d", "avg_score.txt", "score avg:{mean}"),
    "clip": ("annotation_clip", "score.txt", "score avg:{mean}"),
    "numeracy": ("annotation_num", "score.txt", "total:{total} num:{count} avg:{mean}"),
    "depth": ("labels/annotation_obj_detection_3d", "avg_result.txt", "avg score is {mean}"),
    "three_in_one": ("annotation_3_in_1", "vqa_score.txt", "score avg:{mean}"),
}
SCORES = "vqa_result.json"


def scores_path(folder: pathlib.Path, score: str) -> pathlib.Path:
    return folder / FILES[score][0] / SCORES


def write_scores(folder: pathlib.Path, score: str, values: np.ndarray) -> None:
    """Writes a category's scores f64[N] into its folder; NaN is a picture without one.

    Such a picture's answer is the string "nan": the benchmark's scripts take answers by their position in the list,
    and add them up, so that their own mean is not a number either.
    """
    answers = [{"question_id": i, "answer": _answer(score, value)} for i, value in enumerate(values.tolist())]
    path = scores_path(folder, score)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(answers))
    known = values[np.isfinite(values)]
    if len(known):
        _, name, words = FILES[score]
        total = float(sum(known.tolist()))
        _write(path.with_name(name), words.format(total=total, count=len(known), mean=total / len(known)))


def read_scores(path: pathlib.Path, count: int) -> np.ndarray:
    """Scores f64[count] by picture, NaN where there is none.

    Raises:
      InputError: the file is damaged, or does not hold each picture's score once.
    """
    cure = "make it again with the benchmark's script"
    try:
        entries = parse(read_bytes(path, cure))
        # The benchmark's scripts name pictures by position or by number, which are the same in a whole folder.
        found = {int(entry["question_id"]): float(entry["answer"]) for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no list of question_id and answer: {error}; {cure}") from error
    if len(entries) != count or sorted(found) != list(range(count)):
        raise InputError(
            f"{path} holds scores of {len(entries):,} pictures, where {count:,} are numbered from 0: it is of other "
            f"pictures; {cure}"
        )
    return np.array([found[i] for i in range(count)])


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Of those that are known; NaN of none."""
    known = [value for value in np.asarray(values).tolist() if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _answer(score: str, value: float) -> float | str:
    if not math.isfinite(value):
        return "nan"
    # The benchmark rounds here, and its mean is that of the rounded ones.
    return f"{value:.4f}" if score == "blip" else value


def _write(path: pathlib.Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
