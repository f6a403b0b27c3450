"""Does a generated picture look more like its own reference than like any other? Needs no pretrained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from absl import logging

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.errors import InputError, NotFinite
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.evaluator import Report

_CHUNK = 256  # queries at a time: the f64 copy of a chunk of 64 px pictures is 25 MB
_TIE = 1e-9  # distances closer than this, relative to the pictures' own energy, are rounding


def retrieval_ranks(generated, gallery, target) -> np.ndarray:
    """Rank of each generated picture's own reference among all references, by pixel L2 distance; 0 is nearest.

    A reference exactly as near as the target's own counts as nearer, so that duplicates in the gallery cannot flatter.

    Args:
      generated: f32[n, H, W, 3] in any one range, the gallery's.
      gallery: f32[m, H, W, 3], the references.
      target: i[n], the index in `gallery` of each generated picture's own reference.

    Returns:
      i64[n] in [0, m).

    Raises:
      InputError: shapes do not fit, no pictures, or a target out of range.
      NotFinite: a pixel is not finite.
    """
    generated, gallery, target = np.asarray(generated), np.asarray(gallery), np.asarray(target)
    if generated.ndim != 4 or generated.shape[1:] != gallery.shape[1:] or not len(generated) or not len(gallery):
        raise InputError(f"retrieval needs pictures of one size, got {generated.shape} against {gallery.shape}")
    if target.shape != (len(generated),) or target.dtype.kind not in "iu":
        raise InputError(f"retrieval needs one integer target per generated picture, got {target.dtype}{target.shape}")
    if target.min() < 0 or target.max() >= len(gallery):
        raise InputError(f"retrieval targets must lie in [0, {len(gallery)}), got {target.min()} to {target.max()}")
    if not (np.isfinite(generated).all() and np.isfinite(gallery).all()):
        raise NotFinite("retrieval met a pixel that is not finite; the sampler or the model that made it has diverged")

    references = gallery.reshape(len(gallery), -1).astype(np.float64)
    reference_energy = np.sum(references**2, axis=1)
    ranks = np.empty(len(generated), np.int64)
    for start in range(0, len(generated), _CHUNK):
        queries = generated[start : start + _CHUNK].reshape(-1, references.shape[1]).astype(np.float64)
        own = target[start : start + _CHUNK]
        energy = np.sum(queries**2, axis=1, keepdims=True) + reference_energy  # [q, m]
        distance = energy - 2.0 * queries @ references.T
        rows = np.arange(len(own))
        at_least_as_near = distance <= distance[rows, own][:, None] + _TIE * energy
        at_least_as_near[rows, own] = False
        ranks[start : start + _CHUNK] = np.sum(at_least_as_near, axis=1)
    return ranks


def retrieval_at_1(generated, gallery, target) -> float:
    """Fraction of generated pictures whose nearest reference is their own; chance is 1/m. See `retrieval_ranks`."""
    return float(np.mean(retrieval_ranks(generated, gallery, target) == 0))


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """At the end of a run: retrieval@1 of `count` captions against every picture of the data set, all of one size."""

    drawings: Drawings
    count: int
    name: str = "retrieval"

    def due(self, step: int, last: int) -> bool:
        return step == last

    def __call__(self, weights: Parameters, beat: Callable[[], None]) -> Report:
        indices = self.drawings.spread(self.count)
        try:
            generated = self.drawings.draw(weights, indices, beat)
            beat()
            gallery = self.drawings.real(range(len(self.drawings.samples)))
            score = retrieval_at_1(np.stack(generated), np.stack(gallery), indices)
        except NotFinite as error:  # What is trained is saved all the same.
            logging.error("NO RETRIEVAL IS MEASURED: %s", error)
            return Report("no retrieval: the pictures are not finite")
        return Report(f"retrieval@1 over {self.count} captions: {score:.3f}", {"retrieval_at_1": score})
