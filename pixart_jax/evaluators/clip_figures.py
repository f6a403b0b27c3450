"""CLIP score and CMMD of an evaluation: the networks that they need, and the figures of what these gave."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pixart_jax.conversion.clip import load_clip
from pixart_jax.errors import InputError
from pixart_jax.evaluators.captions import CaptionSet
from pixart_jax.evaluators.clip_network import caption_network, picture_network
from pixart_jax.evaluators.clip_score import clip_score, cosines
from pixart_jax.evaluators.distances import clip_discrepancy
from pixart_jax.evaluators.evaluation import write_text
from pixart_jax.evaluators.networks import FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureSet, SetFeatures

# Metrics, which are also what their networks for pictures are for; and what that for captions is for.
CLIP_SCORE, CMMD = "clip_score", "cmmd"
OF_CLIP = (CLIP_SCORE, CMMD)
CAPTIONS = "captions"

# The network that CMMD is defined with, and with which alone the distance is called so.
_CMMD_NETWORK = "CLIP ViT-L/14@336"


def open_clip_networks(
    path: pathlib.Path, metrics: Collection[str], preprocessing: str, cmmd_preprocessing: str
) -> dict[str, FeatureNetwork]:
    """Those that the metrics need, by what they are for: CLIP_SCORE, CAPTIONS, CMMD.

    Args:
      path: see `conversion.clip.load_clip`.
      preprocessing, cmmd_preprocessing: of `clip_preprocessing`.

    Raises:
      InputError: it is no CLIP, it lacks a tower or its tokenizer, or its pictures cannot be prepared so.
    """
    clip = load_clip(path)
    found = {}
    if CLIP_SCORE in metrics:
        captions = caption_network(clip)
        found[CLIP_SCORE] = picture_network(clip, preprocessing)
        found[CAPTIONS] = dataclasses.replace(captions, name=f"{captions.name}, captions")
    if CMMD in metrics:
        pictures = picture_network(clip, cmmd_preprocessing)
        found[CMMD] = dataclasses.replace(pictures, name=f"{pictures.name}, CMMD")
    return found


def caption_scores(pictures: SetFeatures, captions: SetFeatures, asked: CaptionSet) -> np.ndarray:
    """Cosine of each picture that could be read and its caption, f64[N].

    Args:
      pictures: of a set that `asked` was made of the captions of.
      captions: of `asked`.
    """
    which = np.array(asked.which)[pictures.read]
    return cosines(pictures.features, captions.features[which])


def clip_figures(scores: np.ndarray) -> dict[str, float]:
    """CLIP score of `caption_scores`; raises InputError where there is none."""
    return {CLIP_SCORE: clip_score(scores)}


def cmmd_figures(network: FeatureNetwork, pictures: SetFeatures, reference: SetFeatures) -> dict[str, float]:
    """CMMD: called so where the network is the one it is defined with.

    Raises:
      InputError: there is no picture on a side.
    """
    if not (len(pictures.features) and len(reference.features)):
        raise InputError("CMMD needs pictures on each side, and of one none could be read")
    name = CMMD if network.name.startswith(_CMMD_NETWORK) else "clip_discrepancy"
    return {name: clip_discrepancy(pictures.features, reference.features)}


def write_scores(
    path: pathlib.Path, pictures: PictureSet, read: Sequence[int] | np.ndarray, scores: np.ndarray
) -> None:
    """A JSON object of each picture's name to 100 times its cosine."""
    rows = {pictures.name(int(place)): round(100 * float(score), 4) for place, score in zip(read, scores, strict=True)}
    write_text(path, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


def about_captions(asked: CaptionSet, source: str) -> Mapping[str, Any]:
    """What a result says of the captions."""
    return {"source": source, "count": len(asked.which), "distinct": len(asked), "sha256": asked.fingerprint}
