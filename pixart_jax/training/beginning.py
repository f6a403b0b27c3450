"""How a run begins, or goes on: from nothing, from weights, or from a checkpoint of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import logging

from pixart_jax.adapters.adapter import Params
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.cluster.agreement import agree
from pixart_jax.errors import InputError
from pixart_jax.training.plan import Plan
from pixart_jax.training.step import ema_memory
from pixart_jax.training.waits import announced

# The largest share of an average that is of a run's beginning.
_MEMORY = 0.1


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a run begins or goes on with.

    Attributes:
      frozen: the half that is not trained.
      frozen_checksum: of it; None where there is none.
      pending: metrics of steps that are done and not logged, see `MetricsWindow`.
      ema_warmup: whether the averaged parameters began with a warm-up, see `step.ema_rate`.
    """

    state: TrainState
    frozen: Params
    frozen_checksum: str | None
    pending: list[dict[str, float]]
    ema_warmup: bool

    def progress(self, iterator: dict[str, Any], pending: list[dict[str, float]]) -> dict[str, Any]:
        """What a checkpoint says beside the arrays, for `begin` to go on by."""
        held = {} if self.frozen_checksum is None else {"frozen": self.frozen_checksum}
        return {"iterator": iterator, "pending": pending, "ema_warmup": self.ema_warmup, **held}


def begin(plan: Plan, checkpoints: Checkpoints) -> Beginning:
    """The state at the newest sound checkpoint, whose place in the data is found again; or one of step 0.

    Raises:
      InputError: the checkpoints are of another model, all damaged, or beyond the last step; or the frozen half is
        not the one that the run began with.
    """
    birth, wanted = plan.program.birth, plan.config.train.ema_warmup
    agree("where the run goes on", {"newest checkpoint": str(checkpoints.latest_step)})
    if checkpoints.latest_step is None:
        with announced("making the first state"):
            state, frozen = birth.fresh() if plan.weights is None else birth.start(plan.weights, plan.trained)
            checkpoints.prepare(plan.program.state)
        return Beginning(state, frozen, birth.frozen_checksum(frozen), [], wanted)
    with announced("reading the run's checkpoint"):
        state, progress = checkpoints.restore(plan.program.state)
    step = int(state.step)
    if step > plan.last:
        raise InputError(
            f"config.train.num_steps = {plan.last}: the run in {plan.workdir} is at step {step} already; set it to "
            "more, or name another workdir"
        )
    frozen = birth.frozen(plan.weights)
    checksum, before = birth.frozen_checksum(frozen), progress.get("frozen")
    if checksum != before:
        raise InputError(
            f"config.init_from = {plan.config.init_from!r}: the frozen weights have checksum {checksum}, and this run "
            f"began with those of {before}; name the weights that it began with, those of LPIPS and of its decoder "
            "among them, or another workdir"
        )
    plan.data.batches.set_state(progress["iterator"])
    # Runs of before there was one have none.
    if (ema_warmup := progress.get("ema_warmup", False)) != wanted:
        logging.warning(
            "config.train.ema_warmup = %s: this run began with %s, and its average goes on so", wanted, ema_warmup
        )
    finished = ", which is the last: the run is finished already" if step == plan.last else ""
    logging.info("going on from step %d in %s%s", step, checkpoints.directory, finished)
    return Beginning(state, frozen, checksum, progress["pending"], ema_warmup)


def warn_of_lag(plan: Plan, ema_warmup: bool) -> None:
    """Says so where the averaged parameters, which are drawn from, hardly follow those that are trained.

    Args:
      ema_warmup: as the run began.
    """
    decay = plan.config.train.ema_decay
    memory = ema_memory(decay, ema_warmup, plan.last)
    if memory > _MEMORY:
        logging.warning(
            "config.train.ema_decay = %s: after %d steps the averaged weights, from which pictures are drawn and a "
            "next run starts, are still to %.1f %% those that this run began with. Begin it with "
            "config.train.ema_warmup=True, or a decay of at most %.3g; "
            "tools.sample --no-ema draws with the raw weights",
            decay,
            plan.last,
            100 * memory,
            _MEMORY ** (1 / plan.last),
        )
