"""Who gives a kind of score: what a network says of a picture, and the score that follows from it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_network import ClipNetwork, describe_clip
from pixart_jax.evaluators.compbench.blip import BlipAnswers
from pixart_jax.evaluators.compbench.depth import depth_path, read_depth, score_picture_in_depth
from pixart_jax.evaluators.compbench.detections import OWN_DETECTORS, Detection, DetectionFile, missing_labels
from pixart_jax.evaluators.compbench.detector import TorchDetector
from pixart_jax.evaluators.compbench.language import English
from pixart_jax.evaluators.compbench.layout import Pictures
from pixart_jax.evaluators.compbench.numeracy import counts_of, detected_name, numeracy_score
from pixart_jax.evaluators.compbench.questions import attribute_score, questions_of
from pixart_jax.evaluators.compbench.spatial import complex_pair_of, pair_of, score_picture

# As `describe_clip` calls it; pictures are prepared as OpenAI's library does.
OWN_CLIP, OWN_PREPROCESSING = "CLIP ViT-B/32", "openai"


@dataclasses.dataclass(frozen=True)
class About:
    """A network that scores.

    Attributes:
      name: what people call it.
      sha256: of its weights; "" where nobody knows.
      differs: in what it is not the benchmark's own; "" in nothing that is known.
    """

    name: str
    sha256: str
    differs: str


class Scorer(Protocol):
    """One kind of score."""

    about: About

    def judge(self, pictures: Pictures, rows: Sequence[int], images: Sequence[Image.Image]) -> Sequence[Any]:
        """What the network says of each, as JSON can hold it; the slow part."""

    def score(self, pictures: Pictures, row: int, said: Any) -> float:
        """Of what was said of a picture."""


class BlipScorer:
    """BLIP-VQA's answers to the questions of a prompt."""

    def __init__(self, answers: BlipAnswers, english: English):
        self.about = About("BLIP-VQA (transformers)", answers.sha256, answers.note)
        self._answers, self._english = answers, english

    def judge(self, pictures: Pictures, rows: Sequence[int], images: Sequence[Image.Image]) -> list[list[float]]:
        questions = [questions_of(self._english.parse(pictures.prompt(row)).noun_phrases) for row in rows]
        return self._answers(images, questions)

    def score(self, pictures: Pictures, row: int, said: Sequence[float]) -> float:
        return attribute_score(said)


class ClipScorer:
    """The cosine of CLIP's features of picture and prompt; of a complex prompt without its adjectives.

    Source: T2I-CompBench, §4.3; its `CLIPScore_eval/CLIP_similarity.py`.
    """

    def __init__(self, clip: ClipNetwork, english: English | None):
        """english: for complex prompts alone.

        Raises:
          InputError: there is no tower for pictures, or none for captions.
        """
        loaded = clip.clip
        if loaded.model.vision is None or loaded.model.text is None or loaded.tokenizer is None:
            raise InputError(f"--clip {loaded.path}: lacks a tower or its tokenizer; name the folder of a whole CLIP")
        name = describe_clip(loaded.model)
        digests = loaded.digest("vision_model") + loaded.digest("text_model")
        differs = "" if name == OWN_CLIP else f"not {OWN_CLIP}"
        self.about = About(name, hashlib.sha256(digests.encode()).hexdigest(), differs)
        self._clip, self._english = clip, english

    def judge(self, pictures: Pictures, rows: Sequence[int], images: Sequence[Image.Image]) -> list[float]:
        texts = [self._text(pictures, row) for row in rows]
        distinct = list(dict.fromkeys(texts))
        of_texts = dict(zip(distinct, self._clip.text_features(distinct), strict=True))
        of_pictures = self._clip.image_features(images)
        cosines = [float(seen @ of_texts[text]) for seen, text in zip(of_pictures, texts, strict=True)]
        if not np.isfinite(cosines).all():
            raise InputError("--clip: its features are not finite; check its weights")
        return cosines

    def score(self, pictures: Pictures, row: int, said: float) -> float:
        return said

    def _text(self, pictures: Pictures, row: int) -> str:
        prompt = pictures.prompt(row)
        if self._english is None:
            return prompt
        return " ".join(word.text for word in self._english.parse(prompt).words if word.kind != "ADJ")


class SpatialScorer:
    """Where two things stand that a detector found."""

    kind = "spatial"

    def __init__(self, found: TorchDetector | DetectionFile, pictures: Pictures, english: English):
        """found: what looks for things, or what was found."""
        self._found, self._english = found, english
        name, sha256 = (found.name, found.sha256) if isinstance(found, TorchDetector) else (found.detector, "")
        names = self.names(pictures)
        differs = [] if name == OWN_DETECTORS[self.kind] else [f"not its detector, {OWN_DETECTORS[self.kind]}"]
        if unknown := missing_labels(names, found.labels):
            differs.append(f"no label for {len(unknown)} of {len(names)} things: {', '.join(unknown)}")
        self.about = About(name, sha256, "; ".join(differs))

    def judge(self, pictures: Pictures, rows: Sequence[int], images: Sequence[Image.Image]) -> list[list[list[Any]]]:
        if isinstance(self._found, DetectionFile):
            return [_as_json(self._found.pictures[pictures.name(row)]) for row in rows]
        return [_as_json(found) for found in self._found(images)]

    def score(self, pictures: Pictures, row: int, said: Any) -> float:
        prompt = pictures.prompt(row)
        return score_picture(prompt, self._pair(pictures.category, prompt), _from_json(said))

    def names(self, pictures: Pictures) -> set[str]:
        """What the prompts ask a detector for."""
        pairs = [self._pair(pictures.category, prompt) for prompt in pictures.prompts]
        return {name for pair in pairs if pair for name in pair}

    def _pair(self, category: str, prompt: str) -> tuple[str, str] | None:
        words = self._english.parse(prompt).words
        return complex_pair_of(words) if category == "complex" else pair_of(words)


class DepthScorer(SpatialScorer):
    """Which of two things that a detector found is in front."""

    kind = "depth"

    def __init__(self, found: TorchDetector | DetectionFile, pictures: Pictures, english: English):
        """Raises InputError if a picture has no map of its depths."""
        missing = [name for name in pictures.names if not depth_path(pictures.folder, name).exists()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(pictures)} pictures of {pictures.category} have no map of depths, the first "
                f"{depth_path(pictures.folder, missing[0])}; UniDet_eval/3D_spatial_eval.py of the benchmark makes them"
            )
        super().__init__(found, pictures, english)

    def score(self, pictures: Pictures, row: int, said: Any) -> float:
        prompt = pictures.prompt(row)
        depths = read_depth(depth_path(pictures.folder, pictures.name(row)))
        return score_picture_in_depth(prompt, self._pair(pictures.category, prompt), _from_json(said), depths)


class NumeracyScorer(SpatialScorer):
    """How many of each thing a detector found."""

    kind = "numeracy"

    def __init__(
        self,
        found: TorchDetector | DetectionFile,
        pictures: Pictures,
        english: English,
        things: Mapping[str, str],
    ):
        """things: see `read_things`."""
        self._things = things
        super().__init__(found, pictures, english)

    def score(self, pictures: Pictures, row: int, said: Any) -> float:
        return numeracy_score(self._counts(pictures.prompt(row)), _from_json(said))

    def names(self, pictures: Pictures) -> set[str]:
        return {detected_name(thing) for prompt in pictures.prompts for thing, _ in self._counts(prompt)}

    def _counts(self, prompt: str) -> list[tuple[str, int]]:
        return counts_of([word.text for word in self._english.parse(prompt).words], self._things)


def _as_json(found: Sequence[Detection]) -> list[list[Any]]:
    return [[one.label, one.score, *one.box] for one in found]


def _from_json(said: Sequence[Sequence[Any]]) -> list[Detection]:
    return [Detection(label, score, (x0, y0, x1, y1)) for label, score, x0, y0, x1, y1 in said]
