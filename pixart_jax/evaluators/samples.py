"""A grid of pictures that a run draws of what it has learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from absl import logging

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.errors import NotFinite
from pixart_jax.evaluators.drawings import Drawings
from pixart_jax.evaluators.evaluator import Report


@dataclasses.dataclass(frozen=True)
class Samples:
    """Every `every` steps and at the end, `count` captions that `drawings` draws."""

    drawings: Drawings
    count: int
    every: int
    name: str = "samples"

    def due(self, step: int, last: int) -> bool:
        return step == last or (step > 0 and step % self.every == 0)

    def __call__(self, weights: Parameters, beat: Callable[[], None]) -> Report:
        about = "real | drawn" if self.drawings.has_pictures else "prompts"
        try:
            return Report(about, pictures={"samples": self.drawings.grid(weights, self.count, beat)})
        except NotFinite as error:  # Training may well recover from it, and a black grid would say nothing.
            logging.error("NO PICTURES ARE DRAWN: %s", error)
            return Report("no pictures: they are not finite")
