"""The figures of an evaluation, of the features that networks gave of its pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.evaluators.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
    statistics_of,
)
from pixart_jax.evaluators.feature_networks import frechet_name, kernel_name
from pixart_jax.evaluators.networks import FEATURES, LOGITS, FeatureNetwork
from pixart_jax.evaluators.picture_sets import SetFeatures
from pixart_jax.evaluators.references import Reference
from pixart_jax.evaluators.retrieval import retrieval_at_1

# What is made of the features of one network, and what of them needs the reference's own features.
OF_FEATURES, OF_BOTH = ("fid", "kid", "is", "pr"), ("kid", "pr")
# What is made of pixels.
RETRIEVAL = "retrieval"


def feature_figures(
    metrics: Collection[str],
    network: FeatureNetwork,
    generated: SetFeatures,
    reference: Reference | SetFeatures | None,
    kid_subset_size: int,
) -> tuple[dict[str, float], int | None]:
    """Those of OF_FEATURES that are among `metrics`.

    Args:
      generated, reference: of `network`; a reference of statistics alone has no OF_BOTH, None only "is".
      kid_subset_size: at most.

    Returns:
      Figures by name, and the size of KID's subsets; None without KID.

    Raises:
      InputError: there are too few pictures.
    """
    figures: dict[str, float] = {}
    subset = None
    width = network.outputs[FEATURES]
    if isinstance(reference, SetFeatures):
        if "kid" in metrics:
            subset = min(kid_subset_size, len(generated.features), len(reference.features))
            pair = generated.features, reference.features
            name = kernel_name(network)
            figures[name], figures[f"{name}_std"] = kernel_distance(*pair, subset_size=subset)
        if "pr" in metrics:
            figures["precision"], figures["recall"] = precision_and_recall(generated.features, reference.features)
    if "fid" in metrics and reference is not None:
        if isinstance(reference, Reference):
            second = reference.statistics
        else:
            second = statistics_of([reference.features], width)
        figures[frechet_name(network)] = frechet_distance(statistics_of([generated.features], width), second)
    if "is" in metrics:
        figures["inception_score"], figures["inception_score_std"] = inception_score(generated.outputs[LOGITS])
    return figures, subset


def retrieval_figure(generated: SetFeatures, gallery: SetFeatures, own: Sequence[int]) -> dict[str, float]:
    """How many pictures look more like the one of their own caption than like any other of the gallery.

    Args:
      generated, gallery: of `pixel_network`.
      own: for each place of the generated set the place of its own picture in the gallery.

    Raises:
      InputError: the gallery's picture of one that was drawn could not be read.
    """
    row_of = {int(place): row for row, place in enumerate(gallery.read)}
    targets = [row_of.get(own[int(place)]) for place in generated.read]
    if None in targets:
        raise InputError("retrieval: a picture that a caption belongs to could not be read; see skipped.txt")
    pictures = generated.features[:, None, None], gallery.features[:, None, None]
    return {"retrieval_at_1": retrieval_at_1(*pictures, np.array(targets))}
