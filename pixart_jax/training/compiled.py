"""The training step as a program of the devices."""

from __future__ import annotations

import dataclasses
import time

import jax
from absl import logging

from pixart_jax.devices.hardware import find_hardware
from pixart_jax.training.metrics import Rates, format_duration
from pixart_jax.training.plan import Plan


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The training step as a program: (state, frozen, batch) -> (state, metrics), and what its speed comes to."""

    step: jax.stages.Compiled
    rates: Rates


def compile_step(plan: Plan) -> Compiled:
    """Ahead of the loop: a batch of another shape is then an error, not a silent second compilation."""
    shapes, begin_at = plan.batch_shapes(), time.perf_counter()
    step = plan.program.lower(shapes).compile()
    logging.info("train step compiled in %s", format_duration(time.perf_counter() - begin_at))
    hardware = find_hardware(jax.devices()[0].device_kind)
    flops = plan.program.flops(shapes) if hardware else None
    return Compiled(step, Rates(plan.config.data.batch_size, flops, hardware))
