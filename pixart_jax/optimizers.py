"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import dataclasses

import jax
import optax

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """AdamW with global-norm clipping and a linear warm-up.

    Attributes:
      learning_rate: after the warm-up; the reference scales 2e-5 by √(batch/256), here it is what it says.
      schedule: "constant", or "cosine" to zero at `num_steps`.
      warmup_steps, num_steps: optimizer steps; the first update has rate 0, as in the reference.
      b1, b2, eps, weight_decay: AdamW's; every parameter decays, biases and tables too, except the null caption,
        which is data.
      grad_clip: largest global norm of the gradient.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    num_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    grad_clip: float


def learning_rate_schedule(spec: OptimizerSpec) -> optax.Schedule:
    """Optimizer step -> learning rate."""
    if spec.schedule == "cosine":
        decay = optax.cosine_decay_schedule(spec.learning_rate, max(1, spec.num_steps - spec.warmup_steps))
    else:
        decay = optax.constant_schedule(spec.learning_rate)
    if not spec.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, spec.learning_rate, spec.warmup_steps)
    return optax.join_schedules([warmup, decay], [spec.warmup_steps])


def decay_mask(params):
    """True for every parameter that weight decay applies to: all but the null caption."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "y_embedding", params)


def build_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """The optax chain of a spec."""
    return optax.chain(
        optax.clip_by_global_norm(spec.grad_clip),
        optax.adamw(
            learning_rate_schedule(spec),
            b1=spec.b1,
            b2=spec.b2,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            mask=decay_mask,
        ),
    )
