"""The sampling program as one compiled step: what is half drawn can be looked at, and drawing can end there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.samplers.guidance import guided
from pixart_jax.samplers.iddpm import per_sample_noise
from pixart_jax.samplers.program import Prepare, as_they_are, branches_of, check_guidance, with_params
from pixart_jax.samplers.steps import Apply, Sampler, Stateful, TakeStep, stateful


@dataclasses.dataclass(frozen=True, eq=False)
class Glimpse:
    """What is known of a batch after one of its steps.

    Attributes:
      step: how many are taken, from 1 on.
      num_steps: of how many.
      tokens: f32[B, N, p·p·C] on the devices, x_0 as this step predicts it; only who fetches it waits for it.
    """

    step: int
    num_steps: int
    tokens: jax.Array


# Told of every step but only once the next one is under way, so that the devices need not wait. What it raises ends
# the drawing.
Watch = Callable[[Glimpse], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """What is compiled, see `compile_programs`.

    Attributes:
      start: (clean tokens, noise, timestep) -> x, that a late start draws from.
      prepare: (params, x, conditions, null, whether only an interval is guided) -> what the model is given, the same in
        all steps, and what it hands on to the first.
      step: one step of a sampler.
    """

    start: Callable
    prepare: Callable
    step: Callable


@dataclasses.dataclass(frozen=True, eq=False)
class StepwiseSampler:
    """A `program.SampleFn` that takes a sampler's steps one by one.

    One compilation per batch shape serves whatever `program.make_sample_fn`'s does, and any number of steps of all
    samplers with the same `Sampler.take_step`.

    Attributes:
      programs: for the sampler's `take_step`.
      watch: told of each step.
    """

    programs: Programs
    sampler: Sampler
    watch: Watch | None = None

    def __call__(
        self, params, noise, keys, conditions, null, guidance_scale, start_tokens=None, correct=None, interval=None
    ):
        """-> (tokens f32[B, N, p·p·C], `steps.faults` of each of S steps i32[B, S])."""
        sampler, programs = self.sampler, self.programs
        x = noise if start_tokens is None else programs.start(start_tokens, noise, np.float32(sampler.first_t))
        given, state = programs.prepare(params, x, conditions, null, interval is not None)
        carry, glimpse, faults = (*sampler.begin(x), state), None, []
        for step in range(sampler.num_rows):
            row = {name: rows[step] for name, rows in sampler.rows.items()}
            carry, tokens, found = programs.step(params, carry, keys, given, guidance_scale, interval, correct, row)
            faults.append(found)
            if self.watch is not None:
                if glimpse is not None:
                    self.watch(glimpse)
                glimpse = Glimpse(step + 1, sampler.num_rows, tokens)
        if self.watch is not None and glimpse is not None:
            self.watch(glimpse)
        return carry[0], np.stack(jax.device_get(faults), axis=1)


def compile_programs(
    apply: Apply | Stateful,
    schedule: DiffusionSchedule | FlowSchedule,
    take_step: TakeStep,
    *,
    guidance: str,
    prepare: Prepare = as_they_are,
    kept: Callable[[Any], Any] = lambda tree: tree,
) -> Programs:
    """The programs of a model and a kind of step; args as of `program.make_sample_fn`.

    Args:
      kept: lays what one program hands to the next, arrays [B, ...] and scalars, over devices.
    """
    check_guidance(guidance)
    called = stateful(apply)

    def denoiser(params, given, guidance_scale, interval):
        return stateful(guided(with_params(called, params, guidance, guidance_scale), given, guidance_scale, interval))

    def sample_start(tokens, noise, t):
        alpha, sigma = noise_level(schedule, t)
        return kept(alpha * tokens + sigma * noise)

    @functools.partial(jax.jit, static_argnums=4)
    def sample_prepare(params, x, conditions, null, alone):
        given = branches_of(guidance, conditions, null, prepare=functools.partial(prepare, params), alone=alone)
        # Whoever is guided in an interval hands nothing on; what the interval is matters no more than the scale.
        return given, kept(denoiser(params, given, 1.0, (0, 0) if alone else None).begin(x))

    def sample_step(params, carry, keys, given, guidance_scale, interval, correct, row):
        noise_fn = per_sample_noise(keys, carry[0].shape[1:])
        model = denoiser(params, given, guidance_scale, interval)
        carry, tokens, found = take_step(model, noise_fn, correct, carry, row)
        return kept(carry), tokens, found

    return Programs(jax.jit(sample_start), sample_prepare, jax.jit(sample_step))
