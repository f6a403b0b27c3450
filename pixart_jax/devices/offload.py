"""Arrays of a training state in the pinned memory of the devices' hosts, and their way to the devices and back."""

from __future__ import annotations

import jax


def in_host_memory(tree):
    """Shapes of arrays with the sharding of each that is worth it in pinned memory of the devices' hosts.

    Scalars and vectors are not: they are small.
    """

    def leaf(leaf):
        if leaf.ndim < 2:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind("pinned_host"))

    return jax.tree.map(leaf, tree)


def to_device(tree):
    """Inside a program: the tree, with copies on the device of what lies in its host's memory."""
    return jax.tree.map(lambda leaf: _move(leaf, jax.memory.Space.Device), tree)


def to_memory_of(tree, like):
    """Inside a program: the tree, each leaf in the memory that `like`'s lies in."""
    return jax.tree.map(lambda leaf, other: _move(leaf, jax.typeof(other).memory_space), tree, like)


def _move(leaf, space):
    return leaf if jax.typeof(leaf).memory_space == space else jax.device_put(leaf, space)
