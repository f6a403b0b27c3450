"""Rectified flow (Liu et al. 2022; Esser et al. 2024, arXiv:2403.03206): x_σ = (1 - σ)·x_0 + σ·eps, and a model that
predicts how x changes with σ, eps - x_0. Its timestep is 1000·σ."""

from __future__ import annotations

import dataclasses

# Of σ = 1.
FLOW_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class FlowSchedule:
    """The process of rectified flow, as samplers walk along it.

    Attributes:
      shift: s of σ → s·σ/(1 + (s - 1)·σ), which spends more of the steps where there is more noise (Esser et al. 2024,
        eq. 23); 1 is none.
    """

    shift: float = 1.0

    @property
    def num_steps(self) -> int:
        return FLOW_STEPS


def shifted(sigma, shift: float):
    """The map of `FlowSchedule.shift`, of any σ in [0, 1]."""
    return shift * sigma / (1 + (shift - 1) * sigma)
