"""A LoRA or DoRA by diffusers' names, whichever file it comes from or goes to."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from pixart_jax.adapters.lora import scaling


@dataclasses.dataclass(frozen=True)
class LoraLayer:
    """What is added to one linear layer: s·B·A.

    Attributes:
      a: f32[inputs, rank]; the patch embedding's inputs in our order, (row, column, channel).
      b: f32[rank, outputs].
      alpha: s is alpha/rank, or rank-stabilised alpha/√rank.
      magnitude: f32[outputs], DoRA's; None of LoRA.
    """

    a: np.ndarray
    b: np.ndarray
    alpha: float
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-1]


@dataclasses.dataclass(frozen=True)
class LoraWeights:
    """An adapter.

    Attributes:
      path: where it comes from, for people.
      layers: diffusers' name of a linear layer to what is added to it.
      rslora: whether its scales are rank-stabilised.
      base: what it was trained over, as its file says; "" where that says nothing.
      patch_size: of the model, where the patch embedding is adapted.
      alpha_was_asked: whether its file does not tell all alphas, and the user did.
    """

    path: pathlib.Path
    layers: Mapping[str, LoraLayer]
    rslora: bool = False
    base: str = ""
    patch_size: int = 2
    alpha_was_asked: bool = False

    def scale(self, name: str) -> float:
        """s of a layer."""
        layer = self.layers[name]
        return scaling(layer.rank, layer.alpha, self.rslora)
