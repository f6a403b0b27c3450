"""The training step as a program of the devices, one for each part of a run."""

from __future__ import annotations

import dataclasses

import jax

from pixart_jax.devices.hardware import find_hardware
from pixart_jax.training.metrics import Rates
from pixart_jax.training.plan import Plan
from pixart_jax.training.program import Program
from pixart_jax.training.waits import announced


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The training step as a program: (state, frozen, batch) -> (state, metrics), and what its speed comes to.

    Attributes:
      done: steps that are done before its first.
    """

    done: int
    step: jax.stages.Compiled
    rates: Rates


def compile_steps(plan: Plan, start: int, ema_warmup: bool) -> list[Compiled]:
    """Ahead of the loop: a batch of another shape is then an error, not a silent second compilation.

    Args:
      start: the step that the run begins or goes on at: no part that has ended by then is compiled.
      ema_warmup: whether the run's average began with a warm-up.
    """
    ends = [*(done for done, _ in plan.parts[1:]), plan.last]
    return [
        _compile(plan, done, program, ema_warmup)
        for (done, program), end in zip(plan.parts, ends, strict=True)
        if start < end
    ]


def _compile(plan: Plan, done: int, program: Program, ema_warmup: bool) -> Compiled:
    shapes = plan.batch_shapes()
    with announced("compiling the training step, which takes minutes for a large model"):
        step = program.lower(shapes, ema_warmup=ema_warmup).compile()
    hardware = find_hardware(jax.devices()[0].device_kind)
    flops = program.flops(shapes) if hardware else None
    return Compiled(done, step, Rates(plan.config.data.batch_size, flops, hardware))
