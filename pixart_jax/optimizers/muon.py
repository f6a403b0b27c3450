"""Muon for the matrices of the blocks, Adam for all the rest.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (Newton-Schulz iteration and
Nesterov momentum); Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, §2.2 (the size of updates).
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

# The kernels of blocks, and of a ControlNet's copies of them. Neither embedders, modulation common to all blocks and
# the last layer, nor biases, norms, tables and depthwise convolutions.
_MATRIX = re.compile(r"(^|/)(blocks_\d+|copies(_\d+)?)/.*/kernel$")

# Blocks of equal kind are stacked on a leading axis, which is no part of any matrix: [..., in, out].
_AXES = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

# The root mean square of an update of Adam's, which that of a matrix is scaled to, so that both heed one learning rate
# and one weight decay (Liu et al., eq. 4).
_ADAMS_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class MuonSpec:
    """What Muon has and Adam has not.

    Attributes:
      beta: decay rate of the matrices' momentum.
    """

    beta: float


def is_matrix(name: str) -> bool:
    """Whether Muon has the parameter of this '/'-joined path."""
    return _MATRIX.search(name) is not None


def _kinds(params):
    def kind(path, _):
        return "muon" if is_matrix("/".join(str(getattr(key, "key", key)) for key in path)) else "adam"

    return jax.tree_util.tree_map_with_path(kind, params)


def _axes(updates):
    return jax.tree.map(lambda _: _AXES, updates)


def _to_adams_size(update):
    """A matrix with orthogonal rows or columns, scaled to the root mean square `_ADAMS_RMS`."""
    return _ADAMS_RMS * math.sqrt(max(update.shape[-2:])) * update


def scale_by_muon_and_adam(spec: MuonSpec, *, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Gradients to updates before learning rate and weight decay: Muon's of matrices (`is_matrix`), Adam's of the rest.

    A matrix is what PyTorch's PixArt has as one: each block's own, and q, k and v together. The state takes 4 bytes per
    parameter of a matrix and 8 of any other: 4.11 per parameter of an XL/2, where AdamW's takes 8.

    Args:
      b1, b2, eps: Adam's.
    """
    muon = optax.chain(
        scale_by_muon(beta=spec.beta, weight_dimension_numbers=_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_to_adams_size, updates)),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps)}, _kinds)
