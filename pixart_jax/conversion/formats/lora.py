"""A LoRA or DoRA by diffusers' names, whichever file it comes from or goes to."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

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


class FewSteps(NamedTuple):
    """How a distilled model is drawn with: one of `samplers.FEW_STEPS`, and in how many steps."""

    sampler: str
    num_steps: int


@dataclasses.dataclass(frozen=True)
class LoraWeights:
    """An adapter.

    Attributes:
      path: where it comes from, for people.
      layers: diffusers' name of a linear layer to what is added to it.
      rslora: whether its scales are rank-stabilised.
      base: what it was trained over, as its file says; "" where that says nothing.
      patch_size: of the model, where the patch embedding is adapted.
      few_steps: of one that was distilled to draw in few steps and without guidance: how, or None.
      alpha_was_asked: whether its file does not tell all alphas, and the user did.
    """

    path: pathlib.Path
    layers: Mapping[str, LoraLayer]
    rslora: bool = False
    base: str = ""
    patch_size: int = 2
    few_steps: FewSteps | None = None
    alpha_was_asked: bool = False

    def scale(self, name: str) -> float:
        """s of a layer."""
        layer = self.layers[name]
        return scaling(layer.rank, layer.alpha, self.rslora)
