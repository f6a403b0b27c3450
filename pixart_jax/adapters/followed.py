"""Training of a student beside its teacher and beside a network that follows what the student draws."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pixart_jax.adapters.taught import Taught
from pixart_jax.samplers.steps import Apply

# Where in the trained half the follower's parameters lie, beside the student's own: no module has the name.
FAKE = "fake"


@dataclasses.dataclass(frozen=True)
class Followed(Taught):
    """The `Adapter` of distribution matching: student, fake and real score network begin as the same weights.

    Student and fake are trained, the real score network, which is the teacher, is frozen. The student alone draws, is
    averaged and is exported: its parameters lie as those of a model that is trained by itself.
    """

    def split(self, base, key):
        student, frozen = super().split(base, key)
        return {**student, FAKE: jax.tree.map(jnp.copy, base)}, frozen

    def drawn(self, trained):
        return {name: part for name, part in trained.items() if name != FAKE}

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(self.drawn(trained), tokens, t, **conditions)

    def fake(self, params) -> Apply:
        """The fake score network, of its parameters, called as (tokens, t, **conditions)."""
        return functools.partial(self.model, params)
