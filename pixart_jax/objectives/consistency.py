"""Latent consistency distillation: one step of a student from anywhere on the teacher's way ends where the way does.

Sources: Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ (Chen et al. 2024), whose code fixes the
guidance, and whose solver is DDIM of 50 steps with tables in float64. With fewer, fewer predictions stand one upon the
other between the picture and pure noise, and what each of them is off adds up less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.denoising import token_mean
from pixart_jax.objectives.objective import LossFn
from pixart_jax.samplers.few_steps import LCM_STEPS, boundary_scalings
from pixart_jax.samplers.guidance import guide, null_branch

DISTANCES = ("huber", "l2")


@dataclasses.dataclass(frozen=True)
class SolverTables:
    """The teacher's S steps, [S] each, from the picture's end of the way on.

    Attributes:
      start, end: timesteps before and after a step, i32.
      alpha_end, sigma_end: of x at its end, f32, computed in float64.
    """

    start: np.ndarray
    end: np.ndarray
    alpha_end: np.ndarray
    sigma_end: np.ndarray


def solver_tables(schedule: DiffusionSchedule, num_steps: int = LCM_STEPS) -> SolverTables:
    """DDIM: of 50 steps from 19, 39, ... 999 to 0, 19, ... 979."""
    skip = schedule.num_steps // num_steps
    start = np.arange(1, num_steps + 1) * skip - 1
    end = np.maximum(start - skip, 0)
    arrival = schedule.alphas_cumprod[end]
    return SolverTables(
        start.astype(np.int32),
        end.astype(np.int32),
        np.sqrt(arrival).astype(np.float32),
        np.sqrt(1.0 - arrival).astype(np.float32),
    )


class ConsistencyStep(NamedTuple):
    """All that a loss is made of, for tests and figures; f32[B, N, F] each.

    Attributes:
      prediction: the student's, from x_t.
      x_prev: where the teacher's step of guided DDIM leads from x_t.
      target: the averaged student's prediction from there.
    """

    prediction: jax.Array
    x_prev: jax.Array
    target: jax.Array


def consistency_step(
    student: Callable,
    target: Callable,
    teacher: Callable,
    schedule: DiffusionSchedule,
    x_t,
    index,
    batch,
    guidance,
    solver_steps: int = LCM_STEPS,
) -> ConsistencyStep:
    """A student's prediction and what it should have been.

    Args:
      student, target, teacher: (tokens, t, **conditions) -> (eps, v).
      x_t: f32[B, N, F], noised to timestep `start[index]`.
      index: i32[B], which of the solver's steps.
      batch: the conditions; their `text_drop` is the student's alone.
      guidance: w of cond + w·(cond - null), a number or f32[B].
      solver_steps: of the teacher's way.
    """
    tables = solver_tables(schedule, solver_steps)
    start, end = (jnp.asarray(table)[index] for table in (tables.start, tables.end))
    eps = student(x_t, start, **batch).eps
    prediction = _consistent(schedule, x_t, start, eps)

    whole = {**batch, "text_drop": jnp.zeros_like(batch["text_drop"])}
    null = {name: jnp.asarray(value) for name, value in null_branch(whole).items()}
    # cond + w·(cond - null) is null + (1 + w)·(cond - null).
    scale = 1.0 + jnp.reshape(guidance, (-1, 1, 1))
    guided = guide(lambda x, t, conditions: teacher(x, t, **conditions), whole, null, scale)
    eps, _ = guided(x_t, start)
    x0 = gaussian.predict_x0(schedule, x_t, start, eps)
    alpha, sigma = (gaussian.at(table, index, x_t) for table in (tables.alpha_end, tables.sigma_end))
    x_prev = jax.lax.stop_gradient(alpha * x0 + sigma * eps)

    eps = target(x_prev, end, **whole).eps
    return ConsistencyStep(prediction, x_prev, jax.lax.stop_gradient(_consistent(schedule, x_prev, end, eps)))


def _consistent(schedule: DiffusionSchedule, x, t, eps):
    """c_skip·x + c_out·x_0 of what a network says at x, which at t = 0 is x."""
    scalings = boundary_scalings(np.arange(schedule.num_steps))
    skip, out = (gaussian.at(table.astype(np.float32), t, x) for table in scalings)
    return skip * x + out * gaussian.predict_x0(schedule, x, t, eps)


def consistency_loss(
    apply: Callable,
    teacher: Callable[[Any], Callable],
    schedule: DiffusionSchedule,
    *,
    guidance: float = 4.5,
    guidance_to: float = 0.0,
    distance: str = "huber",
    huber_c: float = 0.001,
    solver_steps: int = LCM_STEPS,
) -> LossFn:
    """How far the student's end of the way is from its averaged self's, one step of the teacher's nearer to it.

    Args:
      apply: `Adapter.apply` of the student.
      teacher: makes of the adapter's frozen half what is called as (tokens, t, **conditions) -> (eps, v).
      schedule: the training process.
      guidance: w of the teacher's cond + w·(cond - null): one more is what samplers call the guidance scale.
      guidance_to: unless 0, w is drawn for each sample from `guidance` to this, evenly, and the student is told it: the
        condition `guidance` f32[B], see `adapters.guided`.
      distance: one of DISTANCES: the mean of √(d² + c²) - c, or of d².
      huber_c: c.
      solver_steps: in how many the teacher goes all the way; a divisor of the schedule's.
    """
    tables = solver_tables(schedule, solver_steps)

    def loss_fn(trained, held, batch, keys):
        x0 = batch["tokens"].astype(jnp.float32)
        conditions = {name: value for name, value in batch.items() if name != "tokens"}
        num_draws = 3 if guidance_to else 2
        index_keys, noise_keys, *more = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num_draws))(keys), 1, 0)
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, solver_steps))(index_keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(noise_keys)
        start = jnp.asarray(tables.start)[index]
        x_t = gaussian.q_sample(schedule, x0, start, noise)

        w: float | jax.Array = guidance
        told = {}
        if guidance_to:
            w = jax.vmap(lambda key: jax.random.uniform(key, minval=guidance, maxval=guidance_to))(more[0])
            told = {"guidance": w}

        def called(params):
            return lambda tokens, t, **given: apply(params, held.frozen, tokens, t, **told, **given)

        step = consistency_step(
            called(trained),
            called(held.ema),
            teacher(held.frozen),
            schedule,
            x_t,
            index,
            conditions,
            w,
            solver_steps,
        )
        loss = jnp.mean(token_mean(pointwise(step.prediction - step.target, distance, huber_c), batch["num_tokens"]))
        return loss, {"loss": loss}

    return loss_fn


def pointwise(difference, distance: str, huber_c: float):
    """The distance of each component, see `consistency_loss`."""
    if distance == "l2":
        return jnp.square(difference)
    return jnp.sqrt(jnp.square(difference) + huber_c**2) - huber_c
