"""Trained adapters, to draw with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Adapter, Parameters, Params
from pixart_jax.encoding.pretrained import LazyParams
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply

# What a request must bring for a ControlNet, and how it comes by it.
CONTROL_NEEDS = {
    "control": "a ControlNet draws after a control picture; name one (--control; in Python control_condition)"
}
# Why two adapters do not go over a model in int8.
CONTROL_IS_WHOLE = "int8: a ControlNet runs blocks of the model itself, as it was trained; leave int8 out"
DORA_IS_WHOLE = "int8: a DoRA adapter scales the rows of the model's own kernels; merge it, or leave int8 out"


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and what was trained of it.

    Attributes:
      adapt: the adapter of a model, or of one that is adapted already; its frozen half is the model's parameters.
      load: its trained half, on the devices. Another one of the same shapes compiles nothing anew.
      needs: conditions that it takes beside the model's, by name: what an error says of one that a request lacks.
      whole: what an error says over a model in int8, for an adapter that takes the model's kernels for what they were.
      manner: by name, what of the model's own way of drawing it changes: sampler, num_steps, guidance.
    """

    adapt: Callable[[Apply], Adapter]
    load: Callable[[], Params]
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    whole: str = ""
    manner: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class AdapterFile(Protocol):
    """An adapter in a file, or in whatever else holds one."""

    def over(self, model: PixArt, mesh: Mesh) -> Adaptation:
        """It, laid over a model; raises InputError where it is another model's."""


def adapted(
    over: Callable[[Apply], Apply], weights: LazyParams, adaptations: Sequence[Adaptation]
) -> tuple[Callable[[Apply], Apply], LazyParams]:
    """`Parts.over` and `Parts.weights`, with adapters laid over them, one after the other."""
    if not adaptations:
        return over, weights

    def laid_over(model: Apply) -> Apply:
        below = over(model)

        def apply(params: Parameters, tokens, t, **conditions):
            called = below
            for adaptation, trained in zip(adaptations, params.trained, strict=True):
                called = _with(adaptation.adapt(called), trained)
            return called(params.frozen, tokens, t, **conditions)

        return apply

    return laid_over, LazyParams(
        lambda: Parameters([adaptation.load() for adaptation in adaptations], weights()),
        keep=False,  # Their scales may change, and the model's are kept by themselves.
    )


def _with(adapter: Adapter, trained: Params) -> Apply:
    def apply(frozen, tokens, t, **conditions):
        return adapter.apply(trained, frozen, tokens, t, **conditions)

    return apply
