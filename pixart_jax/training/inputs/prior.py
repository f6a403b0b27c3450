"""Batches of which one half is of a second source: DreamBooth's subject and its class."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixart_jax.objectives.prior_preservation import IS_PRIOR
from pixart_jax.training.inputs.base import Batches

# A row of what such a batch holds beside the others.
ROW = {IS_PRIOR: np.asarray(False)}


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
