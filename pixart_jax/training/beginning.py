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
from pixart_jax.training.waits import announced


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a run begins or goes on with.

    Attributes:
      frozen: the half that is not trained.
      frozen_checksum: of it; None where there is none.
      pending: metrics of steps that are done and not logged, see `MetricsWindow`.
    """

    state: TrainState
    frozen: Params
    frozen_checksum: str | None
    pending: list[dict[str, float]]

    def progress(self, iterator: dict[str, Any], pending: list[dict[str, float]]) -> dict[str, Any]:
        """What a checkpoint says beside the arrays, for `begin` to go on by."""
        held = {} if self.frozen_checksum is None else {"frozen": self.frozen_checksum}
        return {"iterator": iterator, "pending": pending, **held}


def begin(plan: Plan, checkpoints: Checkpoints) -> Beginning:
    """The state at the newest sound checkpoint, whose place in the data is found again; or one of step 0.

    Raises:
      InputError: the checkpoints are of another model, all damaged, or beyond the last step; or the frozen half is
        not the one that the run began with.
    """
    birth = plan.program.birth
    agree("where the run goes on", {"newest checkpoint": str(checkpoints.latest_step)})
    if checkpoints.latest_step is None:
        with announced("making the first state"):
            state, frozen = birth.fresh() if plan.weights is None else birth.start(plan.weights)
            checkpoints.prepare(plan.program.state)
        return Beginning(state, frozen, birth.frozen_checksum(frozen), [])
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
            f"began with those of {before}; name the weights that it began with, or another workdir"
        )
    plan.data.batches.set_state(progress["iterator"])
    finished = ", which is the last: the run is finished already" if step == plan.last else ""
    logging.info("going on from step %d in %s%s", step, checkpoints.directory, finished)
    return Beginning(state, frozen, checksum, progress["pending"])
