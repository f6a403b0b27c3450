"""Samplers by name: plain functions over a denoiser, which never import a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.schedule import DiffusionSchedule, respace
from pixart_jax.errors import InputError
from pixart_jax.samplers import dpm_solver, flow, sa_solver
from pixart_jax.samplers.ddim import ddim_table
from pixart_jax.samplers.euler import euler_table, heun_rows, heun_table
from pixart_jax.samplers.few_steps import dmd_table, lcm_table
from pixart_jax.samplers.iddpm import iddpm_sampler
from pixart_jax.samplers.multistep import MultistepTable, multistep_sampler
from pixart_jax.samplers.steps import Sampler

# (schedule, number of steps of the whole way, start) -> the rows that are left of it.
_Table = Callable[[Any, int, float], MultistepTable]


def _whole_way(
    build: Callable[[Any, int], MultistepTable], rows_of: Callable[[int], int] = lambda steps: steps
) -> _Table:
    """Of a sampler whose late start leaves out its first steps."""

    def table(schedule, num_steps, start):
        whole = build(schedule, num_steps)
        return whole.last_rows(rows_of(_steps_left(num_steps, start)))

    return table


_TABLES: dict[str, _Table] = {
    "dpm-solver": _whole_way(dpm_solver.reference_table),
    "dpm-solver-alpha": _whole_way(partial(dpm_solver.reference_table, always_lower_final=False)),
    "dpm-solver-diffusers": _whole_way(dpm_solver.diffusers_table),
    "ddim": _whole_way(ddim_table),
    "sa-solver": _whole_way(sa_solver.reference_table),
    "sa-solver-diffusers": _whole_way(sa_solver.diffusers_table),
    "euler": _whole_way(euler_table),
    "heun": _whole_way(heun_table, heun_rows),
    "lcm": lcm_table,
    "lcm-diffusers": partial(lcm_table, diffusers=True),
    "dmd": _whole_way(dmd_table),
}
# Those over a FlowSchedule.
_FLOW_TABLES: dict[str, _Table] = {
    "flow-euler": _whole_way(flow.euler_table),
    "flow-heun": _whole_way(flow.heun_table, heun_rows),
    "flow-dpm-solver": _whole_way(flow.dpm_solver_table),
}
FLOW_SAMPLERS = tuple(_FLOW_TABLES)
SAMPLERS = (*_TABLES, "iddpm", *FLOW_SAMPLERS)

# Those of models that were distilled to draw in few steps and without guidance: in how many.
FEW_STEPS = {"lcm": 4, "lcm-diffusers": 4, "dmd": 1}


def guidance_of(name: str) -> str:
    """What of `program.GUIDANCES` the models of a sampler are drawn with."""
    return "none" if name in FEW_STEPS else "cfg"


def build_sampler(
    name: str, schedule: DiffusionSchedule | FlowSchedule, num_steps: int, *, start: float = 1.0
) -> Sampler:
    """The named sampler with its coefficients computed.

    Args:
      schedule: what it walks along, see `predictions.Target.schedule`.
      num_steps: of the whole way from noise.
      start: which share of it is gone, in (0, 1]: below 1 only the last ⌊start·num_steps⌋ steps are, from an x at
        `Sampler.first_t`, as with diffusers' `strength`. A consistency model takes all its steps on what is left.

    Raises:
      InputError: unknown name, or a number of steps or a start that it cannot take.
    """
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; known are {', '.join(SAMPLERS)}")
    if not 0 < start <= 1:
        raise InputError(f"start = {start:g}: must lie in (0, 1]; 1 draws from pure noise")
    if isinstance(schedule, FlowSchedule) != (name in FLOW_SAMPLERS):
        raise InputError(f"sampler = {name!r}: walks along another process than {type(schedule).__name__}")
    if isinstance(schedule, FlowSchedule):
        return multistep_sampler(_FLOW_TABLES[name](schedule, num_steps, start))
    if name == "iddpm":
        spaced, count = respace(schedule, num_steps), _steps_left(num_steps, start)
        return iddpm_sampler(spaced, count)
    return multistep_sampler(_TABLES[name](schedule, num_steps, start))


def _steps_left(num_steps: int, start: float) -> int:
    """Of so many steps, those from `start` on."""
    count = int(num_steps * start)
    if count < 1:
        raise InputError(f"start = {start:g}: leaves none of {num_steps} steps; set it to at least 1/{num_steps}")
    return count
