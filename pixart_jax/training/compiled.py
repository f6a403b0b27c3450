"""The training step as a program of the devices."""

from __future__ import annotations

import dataclasses

import jax

from pixart_jax.devices.hardware import find_hardware
from pixart_jax.training.metrics import Rates
from pixart_jax.training.plan import Plan
from pixart_jax.training.waits import announced


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The training step as a program: (state, frozen, batch) -> (state, metrics), and what its speed comes to."""

    step: jax.stages.Compiled
    rates: Rates


def compile_step(plan: Plan, ema_warmup: bool) -> Compiled:
    """Ahead of the loop: a batch of another shape is then an error, not a silent second compilation.

    Args:
      ema_warmup: whether the run's average began with a warm-up.
    """
    shapes = plan.batch_shapes()
    with announced("compiling the training step, which takes minutes for a large model"):
        step = plan.program.lower(shapes, ema_warmup=ema_warmup).compile()
    hardware = find_hardware(jax.devices()[0].device_kind)
    flops = plan.program.flops(shapes) if hardware else None
    return Compiled(step, Rates(plan.config.data.batch_size, flops, hardware))
