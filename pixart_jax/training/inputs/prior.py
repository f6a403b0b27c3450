"""Batches of which one half is of a second source: DreamBooth's subject and its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.objectives.prior_preservation import IS_PRIOR
from pixart_jax.training.inputs.base import Batches

Source = TypeVar("Source")


def with_prior(
    config: ConfigDict, spec: BatchSpec, open_batches: Callable[[BatchSpec, Source], Batches], sources: Sequence[Source]
) -> tuple[Mapping[str, np.ndarray], Batches]:
    """What a batch holds beside what samples make, one row of it, and the batches.

    Args:
      spec: of whole batches.
      open_batches: of a source, in batches of the size that it is given.
      sources: the subject's and, with config.data.prior_source, its class's.

    Raises:
      InputError: a batch has no halves.
    """
    if len(sources) == 1:
        return {}, open_batches(spec, sources[0])
    require_setting(
        config,
        spec.batch_size % 2 == 0,
        "data.batch_size",
        "half of each process's batch is of config.data.prior_source: make that an even number",
    )
    half = dataclasses.replace(spec, batch_size=spec.batch_size // 2)
    return {IS_PRIOR: np.asarray(False)}, HalfPrior(*(open_batches(half, source) for source in sources))


class HalfPrior:
    """Endless batches: rows of the subject, then as many of its class, and which is which.

    Each half goes through its own source in its own order, so that the state is both halves'.

    Args:
      subject, prior: batches of half the size each, and of the same fields.
    """

    def __init__(self, subject: Batches, prior: Batches):
        self._halves = {"subject": subject, "prior": prior}

    def __next__(self) -> dict[str, np.ndarray]:
        subject, prior = (next(half) for half in self._halves.values())
        rows = len(subject["tokens"])
        batch = {name: np.concatenate([value, prior[name]]) for name, value in subject.items()}
        return batch | {IS_PRIOR: np.repeat([False, True], rows)}

    def get_state(self) -> dict[str, Any]:
        return {name: half.get_state() for name, half in self._halves.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, half in self._halves.items():
            half.set_state(state.get(name, {}))

    def close(self) -> None:
        for half in self._halves.values():
            half.close()
