"""Training of every parameter beside what they were at first: a student and its teacher."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pixart_jax.models.layers import Dtype
from pixart_jax.samplers.steps import Apply


@dataclasses.dataclass(frozen=True)
class Taught:
    """The `Adapter` of a student that begins as its teacher. It draws by itself; only training needs the teacher.

    Attributes:
      model: called with the parameters of either.
      dtype: of the teacher's kernels, which is that of the matrix products they are for.
    """

    model: Apply
    dtype: Dtype

    def split(self, base, key):
        def frozen(path, leaf):
            # Copies: what is frozen may not be the same array as what is donated.
            return leaf.astype(self.dtype) if path[-1].key == "kernel" else jnp.copy(leaf)

        return base, {"teacher": jax.tree_util.tree_map_with_path(frozen, base)}

    def drawn(self, trained):
        return trained

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(trained, tokens, t, **conditions)

    def teacher(self, frozen) -> Apply:
        """The teacher, of the frozen half, called as (tokens, t, **conditions)."""
        return functools.partial(self.model, frozen["teacher"])

    def rules(self):
        return ()
