"""What an evaluation asks of a CLIP: its networks, the captions of the pictures, and what a result says of them."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from pixart_jax.data.prompt_lists import captions_of_shards
from pixart_jax.errors import InputError
from pixart_jax.evaluators.captions import CaptionSet, read_captions
from pixart_jax.evaluators.clip_figures import (
    CAPTIONS,
    CLIP_SCORE,
    CMMD,
    OF_CLIP,
    about_captions,
    caption_scores,
    clip_figures,
    cmmd_figures,
    open_clip_networks,
    write_scores,
)
from pixart_jax.evaluators.networks import FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureFolder, PictureSet, SetFeatures
from pixart_jax.evaluators.picture_sources import ShardPictures

from .drawing import Prompts


def open_networks(args: argparse.Namespace) -> dict[str, FeatureNetwork]:
    """Those that the metrics need of --clip, by what they are for."""
    if not set(args.metrics) & set(OF_CLIP):
        return {}
    return open_clip_networks(args.clip, args.metrics, args.clip_preprocessing, args.cmmd_preprocessing)


def open_captions(
    args: argparse.Namespace, measured: Mapping[str, PictureSet], prompts: Prompts | None
) -> CaptionSet | None:
    """The captions of each set that is measured, which are the same; None where nobody asks.

    Raises:
      InputError: a picture has none.
    """
    if CLIP_SCORE not in args.metrics:
        return None
    if prompts:
        return CaptionSet.of(prompts.texts, args.pictures_per_unit)
    (pictures,) = measured.values()
    if isinstance(pictures, PictureFolder):
        captions = read_captions(pictures.root, pictures.files, args.captions)
    elif isinstance(pictures, ShardPictures) and not args.captions:
        captions = captions_of_shards(pictures.samples, range(len(pictures)), pictures.path)
    else:
        raise InputError(
            f"{pictures.path}: --metrics clip_score takes a folder of pictures with captions, feature shards by "
            "themselves, or what a --checkpoint draws"
        )
    return CaptionSet.of(captions, args.pictures_per_unit)


def measure(
    args: argparse.Namespace,
    file: pathlib.Path,
    pictures: PictureSet,
    captions: CaptionSet | None,
    networks: Mapping[str, FeatureNetwork],
    found: Mapping[str, SetFeatures],
    of_captions: SetFeatures | None,
    reference: SetFeatures | None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and what a result says of CLIP beside them; each picture's own go into a file.

    Args:
      file: for scores of the pictures, one by one.
      found: of the pictures, by what a network is for.
      of_captions: of `captions`.
      reference: of the network for CMMD.
    """
    figures: dict[str, float] = {}
    about: dict[str, Any] = {}
    if captions is not None and of_captions is not None:
        scores = caption_scores(found[CLIP_SCORE], of_captions, captions)
        figures |= clip_figures(scores)
        write_scores(file, pictures, found[CLIP_SCORE].read, scores)
        source = "the prompts" if args.checkpoint else str(args.captions or pictures.path)
        about["captions"] = about_captions(captions, source)
    if CMMD in networks and reference is not None:
        figures |= cmmd_figures(networks[CMMD], found[CMMD], reference)
    if set(networks) & {CLIP_SCORE, CMMD, CAPTIONS}:
        about["clip"] = str(args.clip)
    return figures, about
