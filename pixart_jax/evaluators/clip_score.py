"""CLIP score: how well pictures fit their captions, as CLIP sees it.

| who                       | figure                                              |
|---------------------------|-----------------------------------------------------|
| torchmetrics, and here    | 100 · mean cosine, not below 0                      |
| papers' curves            | mean cosine: ours / 100                             |
| T2I-CompBench             | mean cosine, ViT-B/32, preprocessing `openai`       |
| CLIPScore, Hessel et al.  | mean of 2.5 · max(cosine, 0), ViT-B/32              |

Source: Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixart_jax.errors import InputError


def cosines(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Of each picture and its caption.

    Args:
      pictures, captions: features [N, D] of any length but 0.

    Returns:
      f64[N].

    Raises:
      InputError: there are not as many of one as of the other, or they are of different networks.
    """
    if pictures.shape != captions.shape:
        raise InputError(
            f"features of pictures {list(pictures.shape)} and of captions {list(captions.shape)} do not go together: "
            "one caption for each picture, both by one network"
        )
    first, second = (np.asarray(x, np.float64) for x in (pictures, captions))
    return (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))


def clip_score(found: Sequence[float] | np.ndarray) -> float:
    """100 times the mean of cosines, not below 0, as torchmetrics has it; raises InputError where there is none."""
    if not len(found):
        raise InputError("a CLIP score needs a picture, and none could be read")
    return max(100 * float(np.mean(found)), 0.0)
