"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pixart_jax.optimizers.came import CameSpec, scale_by_came
from pixart_jax.optimizers.muon import MuonSpec, scale_by_muon_and_adam
from pixart_jax.optimizers.schedule_free import schedule_free_adamw

OPTIMIZERS = ("adamw", "came", "muon", "schedule_free")
LR_SCALINGS = ("none", "sqrt", "linear")
SCHEDULES = ("constant", "cosine", "cosine_decay_to_constant", "warmup_stable_decay")

# The reference's batch size at which its rules scale by 1, and the share of all steps that `cosine_decay_to_constant`
# decays in, warm-up included.
_UNSCALED_BATCH = 256
_DECAY_SHARE = 0.667


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """AdamW, CAME, Muon or schedule-free AdamW with global-norm clipping and a linear warm-up.

    Attributes:
      name: one of OPTIMIZERS.
      learning_rate: before `lr_scaling`.
      lr_scaling: one of LR_SCALINGS: what `learning_rate` is multiplied by, 1, √(batch_size/256) or batch_size/256.
      batch_size: samples per optimizer step: over all devices, processes and accumulation steps.
      schedule: one of SCHEDULES, see `learning_rate_schedule`.
      decay_share: of `num_steps`, the last, in which "warmup_stable_decay" falls.
      warmup_steps, num_steps: optimizer steps, however many microbatches, devices or processes share one.
      b1, b2: decay rates of AdamW and CAME, and of what Muon leaves to AdamW; b1 of the schedule-free one is x's share
        of where gradients are taken.
      eps: AdamW's.
      came, muon: CAME's own and Muon's.
      weight_decay: decoupled, times the learning rate; every parameter decays, biases and tables too, except the null
        caption, which is data.
      grad_clip: largest global norm of the gradient.
      patch_size: the model's; CAME has to know the shape of the convolution that the patch embedding is in PyTorch.
    """

    name: str
    learning_rate: float
    lr_scaling: str
    batch_size: int
    schedule: str
    decay_share: float
    warmup_steps: int
    num_steps: int
    b1: float
    b2: float
    eps: float
    came: CameSpec
    muon: MuonSpec
    weight_decay: float
    grad_clip: float
    patch_size: int


def lr_scale(rule: str, batch_size: int) -> float:
    """What one of LR_SCALINGS multiplies the learning rate by: the reference's `auto_lr`."""
    ratio = batch_size / _UNSCALED_BATCH
    return {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[rule]


def learning_rate_schedule(spec: OptimizerSpec) -> optax.Schedule:
    """Optimizer step -> effective learning rate.

    After the warm-up, whose first step has rate 0 as in the reference: "constant"; "cosine", to zero at `num_steps`;
    "cosine_decay_to_constant", a cosine from the scaled learning rate to the one before `lr_scaling`, reached after
    66.7 % of `num_steps`; "warmup_stable_decay", constant and in the last `decay_share` of `num_steps` to zero as
    1 - √(share of that decay) (Hägele et al. 2024, arXiv:2405.18392, §3.2).

    All count optimizer steps. The reference does not mean to differ, but its scheduler is advanced once per process in
    every step, so that its warm-up is shortened by the number of processes, and its cosines take the number of
    batches for the number of steps, accumulated or not. Neither is copied.
    """
    peak = spec.learning_rate * lr_scale(spec.lr_scaling, spec.batch_size)
    if spec.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif spec.schedule == "warmup_stable_decay":
        # `join_schedules` counts from the warm-up's end.
        after = max(1, spec.num_steps - spec.warmup_steps)
        length = min(max(1, int(spec.num_steps * spec.decay_share)), after)
        start = after - length

        def decay(count):
            return peak * (1 - jnp.sqrt(jnp.clip((count - start) / length, 0.0, 1.0)))

    else:
        share, floor = (1.0, 0.0) if spec.schedule == "cosine" else (_DECAY_SHARE, spec.learning_rate / peak)
        decay_steps = max(1, int(spec.num_steps * share) - spec.warmup_steps)
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=floor)
    if not spec.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, peak, spec.warmup_steps)
    return optax.join_schedules([warmup, decay], [spec.warmup_steps])


def decay_mask(params):
    """True for every parameter that weight decay applies to: all but the null caption."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "y_embedding", params)


def build_optimizer(spec: OptimizerSpec, every: int = 1, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """The optax chain of a spec: clipping, scaling, decoupled weight decay, learning rate.

    Args:
      every: it is called once in so many of the steps that the schedule counts.
      mesh: over which the parameters lie, for Muon to share its work.
    """
    rate = learning_rate_schedule(spec)
    if spec.name == "schedule_free":
        how = {"b1": spec.b1, "b2": spec.b2, "eps": spec.eps, "weight_decay": spec.weight_decay}
        clip = optax.clip_by_global_norm(spec.grad_clip)
        return optax.chain(clip, schedule_free_adamw(rate, decay_mask=decay_mask, **how))
    if spec.name == "adamw":
        scale = optax.scale_by_adam(b1=spec.b1, b2=spec.b2, eps=spec.eps)
    elif spec.name == "muon":
        scale = scale_by_muon_and_adam(spec.muon, b1=spec.b1, b2=spec.b2, eps=spec.eps, mesh=mesh)
    else:
        scale = scale_by_came(spec.came, b1=spec.b1, b2=spec.b2, patch_size=spec.patch_size)
    return optax.chain(
        optax.clip_by_global_norm(spec.grad_clip),
        # A chain in the chain, as `optax.adamw` is: checkpoints of before CAME keep their paths.
        optax.chain(
            scale,
            optax.add_decayed_weights(spec.weight_decay, decay_mask),
            optax.scale_by_learning_rate(rate if every == 1 else lambda count: rate(every * count)),
        ),
    )
