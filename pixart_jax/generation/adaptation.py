"""Trained adapters, to draw with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pixart_jax.adapters.adapter import Adapter, Parameters, Params
from pixart_jax.samplers.steps import Apply


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and what was trained of it.

    Attributes:
      adapt: the adapter of a model, or of one that is adapted already; its frozen half is the model's parameters.
      load: its trained half, on the devices. Another one of the same shapes compiles nothing anew.
    """

    adapt: Callable[[Apply], Adapter]
    load: Callable[[], Params]


def adapted(
    model: Apply, weights: Callable[[], Params], adaptations: Sequence[Adaptation]
) -> tuple[Apply, Callable[[], Params]]:
    """A model and what gives its parameters, with adapters laid over it, one after the other."""
    if not adaptations:
        return model, weights

    def apply(params: Parameters, tokens, t, **conditions):
        called = model
        for adaptation, trained in zip(adaptations, params.trained, strict=True):
            called = _with(adaptation.adapt(called), trained)
        return called(params.frozen, tokens, t, **conditions)

    return apply, lambda: Parameters([adaptation.load() for adaptation in adaptations], weights())


def _with(adapter: Adapter, trained: Params) -> Apply:
    def apply(frozen, tokens, t, **conditions):
        return adapter.apply(trained, frozen, tokens, t, **conditions)

    return apply
