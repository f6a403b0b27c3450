"""Which arrays hold NaN or infinity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pixart_jax.devices.sharding import path_name

_NAMED = 3


def not_finite(tree: Any) -> list[str]:
    """'/'-joined paths of the arrays of a tree, on devices or the host, that hold NaN or infinity."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [path_name(path) for path, leaf in leaves if not bool(_all_finite(leaf))]


def names(paths: list[str]) -> str:
    """The first few of them."""
    more = f" and {len(paths) - _NAMED} other arrays" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


@jax.jit
def _all_finite(leaf):
    return jnp.isfinite(leaf).all()
