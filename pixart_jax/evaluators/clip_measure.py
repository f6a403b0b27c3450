"""CLIP score of pictures that are drawn, with the captions that they are drawn for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.clip_score import clip_score, cosines


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """A picture's row is its cosine with its caption; see `quality.Measure`."""

    network: ClipNetwork
    width: int = 1

    def rows(self, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        found = cosines(self.network.image_features(pictures), self.network.text_features(captions))
        return found[:, None].astype(np.float32)

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        return {"clip_score": clip_score(rows[:, 0])}
