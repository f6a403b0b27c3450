"""The parts of a run: what is done for a share of its steps only is another program for the rest, of the same state."""

from __future__ import annotations

import copy
from typing import NamedTuple

from pixart_jax.config.defaults import ConfigDict


class Phase(NamedTuple):
    """Steps that one program makes.

    Attributes:
      done: steps before its first.
      config: the run's, without what has ended.
    """

    done: int
    config: ConfigDict


def phases(config: ConfigDict) -> list[Phase]:
    """In order, at least one. A share of steps is of `config.train.num_steps`, rounded to whole ones."""
    last = config.train.num_steps
    ends = {
        "route": round(config.model.route.until * last) if config.model.route.ratio else last,
        "align": round(config.align.until * last) if config.align.weight else last,
    }
    found = []
    for done in sorted({0, *ends.values()} - {last}):
        own = copy.deepcopy(config)
        if done >= ends["route"]:
            own.model.route.ratio = 0.0  # SPRINT's form still drops the path.
        if done >= ends["align"]:
            own.align.until = 0.0  # Its projector stays among what is trained: a run has one state.
        found.append(Phase(done, own))
    return found
