"""Which network, or which file, each score of a T2I-CompBench comes from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.compbench.blip import BlipAnswers
from pixart_jax.evaluators.compbench.detections import OWN_DETECTORS, DetectionFile, read_detections
from pixart_jax.evaluators.compbench.detector import TorchDetector
from pixart_jax.evaluators.compbench.language import English
from pixart_jax.evaluators.compbench.layout import CATEGORIES, Pictures
from pixart_jax.evaluators.compbench.numeracy import read_things
from pixart_jax.evaluators.compbench.score_files import scores_path
from pixart_jax.evaluators.compbench.scorers import (
    OWN_PREPROCESSING,
    BlipScorer,
    ClipScorer,
    DepthScorer,
    NumeracyScorer,
    SpatialScorer,
)
from pixart_jax.evaluators.compbench.suite import Part, Scored

_OPTIONS = {
    "blip": "--blip DIR",
    "clip": "--clip DIR",
    "spatial": "--detections FILE.json or --detector DIR",
    "numeracy": "--detections FILE.json or --detector DIR",
    "depth": "--detections FILE.json or --detector DIR",
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks that a user has.

    Attributes:
      blip, clip, detector: folders.
      detections: files of what a detector has found.
      batch_size: pictures at a time.
      num_threads: that prepare them.
    """

    blip: pathlib.Path | None
    clip: pathlib.Path | None
    detector: pathlib.Path | None
    detections: tuple[pathlib.Path, ...]
    batch_size: int
    num_threads: int

    @property
    def any(self) -> bool:
        return bool(self.blip or self.clip or self.detector or self.detections)


class _Opener:
    """Opens each network once, when the first score needs it."""

    def __init__(self, pictures: Mapping[str, Pictures], prompts: pathlib.Path, networks: Networks):
        self._prompts, self._networks = prompts, networks
        names = {name: category.names for name, category in pictures.items()}
        self._detections: dict[str, DetectionFile] = {}
        for path in networks.detections:
            file = read_detections(path, names)
            if file.category in self._detections:
                raise InputError(
                    f"--detections {path}: {self._detections[file.category].path} is of {file.category} too"
                )
            pictures[file.category].check()
            self._detections[file.category] = file
        self._english: English | None = None
        self._blip: BlipScorer | None = None
        self._clip: ClipNetwork | None = None
        self._detector: TorchDetector | None = None

    def part(self, pictures: Pictures, score: str) -> Part:
        """Raises InputError if there is nothing that could give the score, with what could."""
        if score == "blip" and self._networks.blip:
            if self._blip is None:
                answers = BlipAnswers(self._networks.blip, self._networks.batch_size)
                self._blip = BlipScorer(answers, self.english())
            return Part(pictures, score, self._blip)
        if score == "clip" and self._networks.clip:
            return Part(pictures, score, self._clip_scorer(pictures, self._networks.clip))
        if score in OWN_DETECTORS:
            if found := self._detections.get(pictures.category):
                return Part(pictures, score, self._detector_scorer(pictures, score, found), looks=False)
            if self._networks.detector:
                found_there = self._open_detector(self._networks.detector)
                return Part(pictures, score, self._detector_scorer(pictures, score, found_there))
        path = scores_path(pictures.folder, score)
        if not path.exists():
            raise InputError(
                f"{pictures.category} needs {_OPTIONS[score]}, or {path} from the benchmark's own script; or leave it "
                "out of --categories"
            )
        pictures.check()
        return Part(pictures, score, None, given=Scored.read(path, len(pictures)))

    def english(self) -> English:
        if self._english is None:
            self._english = English()
        return self._english

    def _clip_scorer(self, pictures: Pictures, path: pathlib.Path) -> ClipScorer:
        if self._clip is None:
            size, threads = self._networks.batch_size, self._networks.num_threads
            self._clip = ClipNetwork(path, batch_size=size, num_threads=threads, preprocessing=OWN_PREPROCESSING)
        return ClipScorer(self._clip, self.english() if pictures.category == "complex" else None)

    def _detector_scorer(self, pictures: Pictures, score: str, found: DetectionFile | TorchDetector) -> SpatialScorer:
        if score == "spatial":
            return SpatialScorer(found, pictures, self.english())
        if score == "depth":
            return DepthScorer(found, pictures, self.english())
        return NumeracyScorer(found, pictures, self.english(), read_things(self._prompts / "new_objects.txt"))

    def _open_detector(self, path: pathlib.Path) -> TorchDetector:
        if self._detector is None:
            self._detector = TorchDetector(path, self._networks.batch_size)
        return self._detector


def open_parts(pictures: Mapping[str, Pictures], prompts: pathlib.Path, networks: Networks) -> list[Part]:
    """All scores that the categories need, with what gives them.

    Args:
      prompts: the benchmark's folder of prompts.

    Raises:
      InputError: one needs a network that is not given or not installed, or one that is given is another's.
    """
    opener = _Opener(pictures, prompts, networks)
    return [opener.part(category, score) for category in pictures.values() for score in CATEGORIES[category.category]]
