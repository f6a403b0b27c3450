"""What of a model is trained, what is only held, and how the two compute together.

A run, its checkpoints, evaluators and pictures know an adapter by this protocol alone. `full` trains everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

from pixart_jax.devices.sharding import Rule
from pixart_jax.samplers.steps import Apply

# A tree of arrays.
Params = Any


class Parameters(NamedTuple):
    """Both halves of an adapted model."""

    trained: Params
    frozen: Params


class Adapter(Protocol):
    """An adapter is made over the `Apply` of the model that it adapts."""

    def split(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(trained, frozen), of the parameters that the model has before training.

        Called under jit. Optimizer, EMA and checkpoints hold the trained half alone; the frozen half is an argument of
        the compiled step, is not saved, and is made again from the same base and key when a run goes on.
        """

    def drawn(self, trained: Params) -> Params:
        """What of the trained half is drawn with, and averaged: all, unless some of it only helps to train the rest."""

    def apply(self, trained: Params, frozen: Params, tokens, t, **conditions):
        """The adapted model's (eps, v), of both halves; of the trained one `drawn` is enough."""

    def rules(self) -> Sequence[Rule]:
        """How what it adds is laid over the mesh: asked before `sharding.PARTITION_RULES`."""


def bind(adapter: Adapter) -> Apply:
    """An adapted model as one that is called with `Parameters`."""

    def apply(params: Parameters, tokens, t, **conditions):
        return adapter.apply(params.trained, params.frozen, tokens, t, **conditions)

    return apply
