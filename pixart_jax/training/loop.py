"""The training loop, read top to bottom."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from pixart_jax.checkpoints.state import TrainState
from pixart_jax.cluster.ending import Ending
from pixart_jax.config import ConfigDict
from pixart_jax.devices.sharding import put_batch
from pixart_jax.evaluators.evaluator import Evaluator
from pixart_jax.training.looks import open_evaluators
from pixart_jax.training.plan import Plan, open_plan
from pixart_jax.training.program import FROM_CONFIG, Parts
from pixart_jax.training.run import open_run


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    ending: Ending | None = None,
    *,
    parts: Parts = FROM_CONFIG,
    evaluators: Callable[[Plan], Sequence[Evaluator]] = open_evaluators,
) -> TrainState:
    """Trains until `config.train.num_steps`, going on from the workdir's newest sound checkpoint if it has one.

    Writes into workdir: config.json, checkpoints/, TensorBoard events, metrics.jsonl, eval.jsonl, eval.png,
    quality.jsonl, quality.png, samples/step_*.png, and at the end samples.png, loss.png and results.json.

    Args:
      ending: of the process, where other threads may end it too.
      parts, evaluators: adapter, objective, optimizer and evaluators, where they are not to be the config's.

    Returns:
      The final state.

    Raises:
      InputError: configuration, data, workdir or checkpoint are unfit, or another run has the workdir; before anything
        is compiled.
      TrainingDiverged: a loss was not finite; no checkpoint was written since.
      SaveFailed: a checkpoint could not be written; those before are untouched.
      SystemExit: one of preemption.STOP_SIGNALS came; a checkpoint was written.
    """
    with open_plan(config, workdir, ending or Ending(), parts) as plan, open_run(plan, evaluators(plan)) as run:
        with run.stepping() as steps:
            for step in steps:
                batch = put_batch(next(plan.data.batches), plan.mesh)
                run.after(step, run.step(batch))
        return run.finish()
