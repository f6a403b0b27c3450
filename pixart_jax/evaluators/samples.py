"""A grid of pictures that a run draws of what it has learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pixart_jax.adapters.adapter import Parameters
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
        return Report(about, pictures={"samples": self.drawings.grid(weights, self.count, beat)})
