"""Trained adapters, to draw with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from pixart_jax.adapters.adapter import Adapter, Parameters, Params, bind
from pixart_jax.samplers.steps import Apply


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and what was trained of it.

    Attributes:
      adapt: the adapter of a model, or of one that is adapted already.
      load: its trained half, on the devices. What differs between two of the same shapes compiles nothing anew.
    """

    adapt: Callable[[Apply], Adapter]
    load: Callable[[], Params]


def adapted(
    apply: Apply, weights: Callable[[], Params], adaptations: Iterable[Adaptation]
) -> tuple[Apply, Callable[[], Params]]:
    """A model and what gives its parameters, with adapters laid over it, one after the other."""
    for adaptation in adaptations:
        apply, weights = bind(adaptation.adapt(apply)), _Both(adaptation.load, weights)
    return apply, weights


@dataclasses.dataclass(frozen=True)
class _Both:
    trained: Callable[[], Params]
    frozen: Callable[[], Params]

    def __call__(self) -> Parameters:
        return Parameters(self.trained(), self.frozen())
