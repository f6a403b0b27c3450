"""Muon for the matrices of the blocks, Adam for all the rest.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (Newton-Schulz iteration and
Nesterov momentum); Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, §2.2 (the size of updates).

Each device makes the updates of some blocks and gets the others' from the rest: if all made all of them, Muon's
products would take as long as the model's where a device has few pictures.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pixart_jax.devices.sharding import ROWS, dividing_axes, row_shards, tree_shardings

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
    """Newton-Schulz of each matrix."""
    # Without momentum it is this alone.
    iteration = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=_axes)
    if mesh is None or row_shards(mesh) == 1:
        return iteration.update(updates, iteration.init(updates))[0]
    leaves, tree = jax.tree.flatten(updates)
    specs = [sharding.spec for sharding in jax.tree.leaves(tree_shardings(updates, mesh))]
    # A transposed matrix has the transposed update: with "fsdp" along the rows of all, more of them have one shape.
    lying = [bool(spec) and "fsdp" in (spec[-1] or ()) for spec in specs]
    turned = map(_turned, leaves, lying)
    stacks = [matrices.reshape(-1, *matrices.shape[-2:]) for matrices in turned]
    alike = collections.defaultdict(list)
    for number, stack in enumerate(stacks):
        alike[stack.shape[1:]].append(number)
    done = list(leaves)
    for numbers in alike.values():
        ends = np.cumsum([len(stacks[number]) for number in numbers])
        apart = _apart(jnp.concatenate([stacks[number] for number in numbers]), mesh)
        whole = _together(iteration.update(apart, iteration.init(apart))[0], ends[-1], mesh)
        for number, part in zip(numbers, jnp.split(whole, ends[:-1]), strict=True):
            done[number] = _turned(part, lying[number]).reshape(leaves[number].shape)
    return jax.tree.unflatten(tree, done)


def _turned(matrices, lies: bool):
    return jnp.swapaxes(matrices, -1, -2) if lies else matrices


# What follows goes from one lie to the next in steps that the compiler has a collective operation for.


def _apart(stack, mesh: Mesh):
    """[matrices, rows along "fsdp", columns] to whole matrices on each of the devices that share a batch's rows, with
    as many of zeros behind them as it takes."""
    stack = jnp.pad(stack, ((0, -len(stack) % row_shards(mesh)), (0, 0), (0, 0)))
    rows = dividing_axes(mesh, ("fsdp",), stack.shape[1])
    return _lie(_lie(_lie(stack, mesh, (), rows), mesh, ("data",), rows), mesh, ROWS)


def _together(stack, count: int, mesh: Mesh):
    """The inverse of `_apart`. Each device gets of the others' matrices what it has of a parameter, and no more."""
    rows = dividing_axes(mesh, ("fsdp",), stack.shape[1])
    return _lie(_lie(_lie(stack, mesh, ROWS), mesh, ("data",), rows)[:count], mesh, (), rows)


def _lie(x, mesh: Mesh, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


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
