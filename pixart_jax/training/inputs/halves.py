"""Batches of which one half is of a second source: DreamBooth's class, or pairs of noises and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.objectives.distribution_matching import IS_PAIR, NOISE
from pixart_jax.objectives.prior_preservation import IS_PRIOR
from pixart_jax.training.inputs.base import Batches

Source = TypeVar("Source")

# Settings that name a second source, and what of a batch says which rows are of it.
SECOND = {"data.prior_source": IS_PRIOR, "data.pair_source": IS_PAIR}


def with_second(
    config: ConfigDict,
    spec: BatchSpec,
    open_batches: Callable[[BatchSpec, Source], Batches],
    sources: Mapping[str, Source],
) -> tuple[Mapping[str, np.ndarray], Batches]:
    """What a batch holds beside what samples make, one row of it, and the batches.

    Args:
      spec: of whole batches.
      open_batches: of a source, in batches of the size that it is given.
      sources: data.source's and perhaps that of one of SECOND, by the setting.

    Raises:
      InputError: a batch has no halves.
    """
    if len(sources) == 1:
        return {}, open_batches(spec, *sources.values())
    (key,) = SECOND.keys() & sources.keys()
    require_setting(
        config,
        spec.batch_size % 2 == 0,
        "data.batch_size",
        f"half of each process's batch is of config.{key}: make that an even number",
    )
    flag = SECOND[key]
    half = dataclasses.replace(spec, batch_size=spec.batch_size // 2, noise=flag == IS_PAIR)
    row = {flag: np.asarray(False)}
    if half.noise:
        row[NOISE] = np.zeros((spec.num_tokens, spec.patch_size**2 * spec.latent_channels), np.float32)
    first, second = (open_batches(half, sources[name]) for name in ("data.source", key))
    return row, Halves(first, second, flag)


class Halves:
    """Endless batches: rows of the first source and of the second in turn, and which is which.

    Each half goes through its own source in its own order, so that the state is both halves'. In turn, so that a global
    batch is the same however many processes read a part of it.

    Args:
      first, second: batches of half the size each, and of the same fields.
      flag: what the second's rows are marked by.
    """

    def __init__(self, first: Batches, second: Batches, flag: str):
        # Runs of before there were other seconds than priors have saved these names.
        self._halves, self._flag = {"subject": first, "prior": second}, flag

    def __next__(self) -> dict[str, np.ndarray]:
        first, second = (next(half) for half in self._halves.values())
        batch = {name: _in_turn(value, second[name]) for name, value in first.items()}
        return batch | {self._flag: np.tile([False, True], len(first["tokens"]))}

    def get_state(self) -> dict[str, Any]:
        return {name: half.get_state() for name, half in self._halves.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, half in self._halves.items():
            half.set_state(state.get(name, {}))

    def close(self) -> None:
        for half in self._halves.values():
            half.close()


def _in_turn(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[B, ...] twice as [2B, ...]: a row of one, a row of the other."""
    return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
