"""Muon for the matrices of the blocks, Adam for all the rest.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (Newton-Schulz iteration and
Nesterov momentum); Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, §2.2 (the size of updates).

Each group of devices along the mesh's "data" axis makes the updates of some blocks and gets the others' from the rest:
if all made all of them, Muon's products would take as long as the model's where a device has few pictures.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pixart_jax.devices.sharding import constrain

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


def _nesterov(beta: float) -> optax.GradientTransformation:
    """The momentum of `scale_by_muon`, with the same state."""

    def update(updates, state, params=None):
        mu, count = optax.tree.update_moment(updates, state.mu, beta, 1), optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, beta, count)
        updates = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        return updates, state._replace(count=count, mu=mu)

    return optax.GradientTransformation(scale_by_muon(beta=beta, weight_dimension_numbers=_axes).init, update)


def _orthogonalized(updates, mesh: Mesh | None):
    """Newton-Schulz of each matrix, those of different blocks on different devices along "data"."""
    # Without momentum it is this alone.
    iteration = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=_axes)
    apart = jax.tree.map(lambda stack: _apart(stack, mesh), updates)
    done, _ = iteration.update(apart, iteration.init(apart))
    return jax.tree.map(lambda stack, wanted: stack[: len(wanted)], done, updates)


def _apart(stack, mesh: Mesh | None):
    """[blocks, in, out] with as many blocks of zeros behind it as the devices along "data" need to share them."""
    parts = 1 if mesh is None or stack.ndim < 3 else mesh.shape["data"]
    if parts == 1:
        return stack
    stack = jnp.pad(stack, ((0, -len(stack) % parts), *((0, 0),) * (stack.ndim - 1)))
    return constrain(stack, mesh, ("data",), *(None,) * (stack.ndim - 1))


def _to_adams_size(update):
    """A matrix with orthogonal rows or columns, scaled to the root mean square `_ADAMS_RMS`."""
    return _ADAMS_RMS * math.sqrt(max(update.shape[-2:])) * update


def scale_by_muon_and_adam(
    spec: MuonSpec, *, b1: float, b2: float, eps: float, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """Gradients to updates before learning rate and weight decay: Muon's of matrices (`is_matrix`), Adam's of the rest.

    A matrix is what PyTorch's PixArt has as one: each block's own, and q, k and v together. The state takes 4 bytes per
    parameter of a matrix and 8 of any other: 4.11 per parameter of an XL/2, where AdamW's takes 8.

    Args:
      b1, b2, eps: Adam's.
      mesh: over which the parameters lie; None or one of one device shares nothing.
    """
    muon = optax.chain(
        _nesterov(spec.beta),
        optax.stateless(lambda updates, _: jax.tree.map(_to_adams_size, _orthogonalized(updates, mesh))),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1=b1, b2=b2, eps=eps)}, _kinds)
