"""What a run measures of itself and shows: an evaluator looks at the weights when it is due, and reports."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pixart_jax.adapters.adapter import Parameters

# A line of an evaluator's file: {"step": ..., **scalars}.
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluator found.

    Attributes:
      about: the same in a few words, for the log.
      scalars: numbers by name: they go into `workdir/NAME.jsonl`, NAME the evaluator's, and to TensorBoard.
      pictures: uint8[H, W, 3] by name: during the run `workdir/PICTURE/step_*.png`, at its end `workdir/PICTURE.png`.
      draw: makes the curves of `workdir/NAME.png`, of its path and all rows of the evaluator's file, with this one.
    """

    about: str
    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    draw: Callable[[pathlib.Path, Sequence[Row]], None] | None = None


class Evaluator(Protocol):
    """Where several processes train together, all of them have the same evaluators, and call them at the same steps.

    Attributes:
      name: of its file; no two of a run have the same.
    """

    @property
    def name(self) -> str: ...

    def due(self, step: int, last: int) -> bool:
        """Whether it looks after that step; 0 is before the first. A run that goes on after `step` asks again."""

    def __call__(self, weights: Parameters, beat: Callable[[], None]) -> Report:
        """Looks.

        Args:
          weights: the averaged parameters and the frozen half, on the devices. One object for all that look at a step:
            what one has drawn, another need not draw again.
          beat: to be called now and then by what takes long, so that the run is not taken to hang.
        """
