"""What settings come to that are allowed and yet seldom meant: a run too short for them, a schedule that has ended."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from pixart_jax.config import ConfigDict, flatten, optimizer_spec
from pixart_jax.optimizers import learning_rate_schedule, lr_scale
from pixart_jax.training.metrics import format_rate

# Settings that the learning rate of a step depends on.
_OF_THE_RATE = (
    "optimizer.learning_rate",
    "optimizer.lr_scaling",
    "optimizer.schedule",
    "optimizer.decay_share",
    "optimizer.warmup_steps",
    "data.batch_size",
    "train.num_steps",
)
# Below this share of the highest rate a run learns next to nothing.
_HARDLY = 0.1


def short_run(config: ConfigDict) -> list[str]:
    """A line for each setting that the run is too short for."""
    last, warmup = config.train.num_steps, config.optimizer.warmup_steps
    of_the_run = f"the run has {last} steps (config.train.num_steps)"
    lines = []
    if warmup > last / 2:
        reached = min(1.0, last / warmup)
        lines.append(
            f"config.optimizer.warmup_steps = {warmup}: {of_the_run}, so the learning rate rises for "
            f"{'all' if reached < 1 else 'most'} of it, to {reached:.0%} of what is set; set it to {last // 20} or so"
        )
    for key in ("sample.every", "eval.every", "train.log_every"):
        used = key != "eval.every" or config.eval.source.strip()
        if used and flatten(config)[key] > last:
            only = "only its end is logged" if key == "train.log_every" else "there is only the one at its end"
            lines.append(
                f"config.{key} = {flatten(config)[key]}: {of_the_run}, so {only}; set it to {max(1, last // 5)} or so"
            )
    return lines


def changed_schedule(before: ConfigDict, now: ConfigDict, step: int) -> str | None:
    """What the learning rate does from `step` on in a run whose settings have changed there; None where they have not.

    Args:
      before: the settings that the run had.
      now: those that it goes on with.
      step: the last that is done.
    """
    old, new = flatten(before), flatten(now)
    if all(old.get(key) == new[key] for key in _OF_THE_RATE):
        return None
    last = now.train.num_steps
    if step >= last:
        return (
            f"all {last} steps are done, and no other rate or schedule changes that: set config.train.num_steps to "
            "more, see docs/training.md#training-longer"
        )
    # A step's count is one less than its number.
    (was,) = _rates(before, [max(0, step - 1)])
    first, end = _rates(now, [step, last - 1])
    course = "stays there" if first == end else f"comes to {format_rate(end)} at step {last}"
    said = (
        f"the learning rate was {format_rate(was)}; with these settings it goes on at {format_rate(first)} and {course}"
    )
    peak = now.optimizer.learning_rate * lr_scale(now.optimizer.lr_scaling, now.data.batch_size)
    if step >= now.optimizer.warmup_steps and max(first, end) < _HARDLY * min(peak, now.optimizer.learning_rate):
        said += (
            f", of {format_rate(peak)} that is set: the schedule, {now.optimizer.schedule!r}, has run down, and next "
            "to nothing will be learnt. To train on, set config.optimizer.schedule='constant', or start another "
            "workdir with config.init_from this one; see docs/training.md#training-longer"
        )
    return said


def _rates(config: ConfigDict, counts: Sequence[int]) -> list[float]:
    """The learning rate after so many steps each, in one program: op by op a schedule would compile a dozen."""
    schedule = learning_rate_schedule(optimizer_spec(config))

    @jax.jit
    def learning_rates(counts):
        return [schedule(count) for count in counts]

    return [float(rate) for rate in learning_rates(list(counts))]
