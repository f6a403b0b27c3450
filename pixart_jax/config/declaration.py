"""How a setting is declared: its default, and the values that can work whatever the other settings say."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.rng import MAX_SEED

# (ok, key, cure) of a check over several settings: see `settings.require_setting`.
Require = Callable[[bool, str, str], None]


@dataclasses.dataclass(frozen=True)
class Range:
    """Values of a setting.

    Attributes:
      holds: whether a value is one of them; called with values of the default's type only.
      cure: what the error for another value says.
    """

    holds: Callable[[Any], bool]
    cure: str


ANY = Range(lambda value: True, "")
# What is smaller, float32 takes for 0.
POSITIVE = Range(lambda value: value >= 2.0**-126, "must be positive")
# Of what is counted, no more than int32 holds.
NOT_NEGATIVE = Range(lambda value: 0 <= value < 2**31, "must not be negative, and below 2^31")
AT_LEAST_ONE = Range(lambda value: 1 <= value < 2**31, "must be at least 1, and below 2^31")
SHARE = Range(lambda value: 0 <= value <= 1, "must lie in [0, 1]")
POSITIVE_SHARE = Range(lambda value: 0 < value <= 1, "must lie in (0, 1]")
SEED = Range(lambda value: 0 <= value <= MAX_SEED, f"must lie in [0, {MAX_SEED}], which is 2^64 - 1")
DECAY_RATE = Range(lambda value: 0 <= value < 1, "must lie in [0, 1)")


def within(low: float, high: float) -> Range:
    """Both ends included. For sizes of models: above, a mistake would fill the memory before anything said so."""
    return Range(lambda value: low <= value <= high, f"must lie in [{low}, {high}]")


def one_of(*choices: str) -> Range:
    """One of a few names."""
    return Range(lambda value: value in choices, f"must be one of {', '.join(choices)}")


def some_of(*choices: str) -> Range:
    """Names with commas between them, each once, or none."""

    def holds(text: str) -> bool:
        names = listed(text)
        return set(names) <= {*choices} and len(names) == len({*names})

    return Range(holds, f"must be some of {', '.join(choices)}, each once, with commas between them")


def listed(text: str) -> list[str]:
    """The parts of a text with commas between them."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def matching(pattern: str, cure: str) -> Range:
    """All that a regular expression fits from end to end."""
    return Range(lambda value: re.fullmatch(pattern, value) is not None, cure)


def _are_rising_timesteps(text: str) -> bool:
    timesteps = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    return all(low < high for low, high in itertools.pairwise([-1, *timesteps, linear_schedule().num_steps]))


RISING_TIMESTEPS = Range(_are_rising_timesteps, "must be rising timesteps from 0 to 999 with commas between them")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting. Its value always is of the default's type."""

    default: bool | int | float | str
    range: Range = ANY
