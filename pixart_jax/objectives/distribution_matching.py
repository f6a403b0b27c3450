"""Distribution matching distillation: what a student draws in one step is to be as likely as what its teacher draws.

Source: Yin et al. 2023, "One-step Diffusion with Distribution Matching Distillation", eq. 7, 8, 10 and algorithm 1; the
student's timestep and the ranges of the others are those of PixArt-Σ's training script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pixart_jax.adapters.adapter import Params
from pixart_jax.adapters.followed import FAKE, Followed
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.predictions import min_snr_weights
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.consistency import pointwise
from pixart_jax.objectives.denoising import token_mean
from pixart_jax.objectives.objective import Batch, Held, Metrics
from pixart_jax.samplers.few_steps import DMD_TIMESTEP
from pixart_jax.samplers.guidance import empty_branch, guide

# Of the batch: f32[B, N, F], what the teacher drew a pair's tokens of, and bool[B], which rows are pairs.
NOISE, IS_PAIR = "noise", "is_pair"
# Timesteps at which scores are compared and the fake network is trained.
_FIRST, _LAST = 1, 998

# (the student's tokens, the teacher's, batch, the frozen half) -> how far apart they are, f32[B].
Distance = Callable[[jax.Array, jax.Array, Mapping[str, jax.Array], Params], jax.Array]


def one_step(student: Callable, schedule: DiffusionSchedule, noise, conditions: Mapping):
    """What a student draws of pure noise, f32[B, N, F], as `samplers.few_steps.dmd_table`."""
    t = jnp.full(len(noise), DMD_TIMESTEP)
    return gaussian.predict_x0(schedule, noise, t, student(noise, t, **conditions).eps)


class Direction(NamedTuple):
    """Where the student's pictures become less likely.

    Attributes:
      gradient: f32[B, N, F], of the divergence by the student's tokens, not weighted.
      real_x0: f32[B, N, F], what the real score network takes the tokens for.
      weight: f32[B], of the gradient: one over the mean distance of that from the tokens.
    """

    gradient: jax.Array
    real_x0: jax.Array
    weight: jax.Array


def direction(schedule: DiffusionSchedule, latents, x_t, t, eps_fake, eps_real, num_tokens) -> Direction:
    """The difference of two scores at the student's tokens `latents`, noised to `x_t` (Yin et al. 2023, eq. 7 and 8).

    A score is -eps/√(1-ᾱ); PixArt's script leaves out the denominator, and multiplies the difference by √((1-ᾱ)/ᾱ).
    """
    real_x0 = gaussian.predict_x0(schedule, x_t, t, eps_real)
    gradient = gaussian.at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * (eps_real - eps_fake)
    return Direction(gradient, real_x0, 1.0 / (token_mean(jnp.abs(latents - real_x0), num_tokens) + 1e-5))


def matching_loss(schedule: DiffusionSchedule, latents, found: Direction, t, num_tokens, *, min_snr_gamma: float = 0.0):
    """f32[]: a loss whose gradient by the student's tokens is, as the mean's, 2·weight·gradient of `found`.

    The 2 is the script's. With `min_snr_gamma` it is `denoising.min_snr_weights`·gradient, again as there.
    """
    found = jax.lax.stop_gradient(found)
    if min_snr_gamma:
        weights = min_snr_weights(schedule, t, min_snr_gamma)
        return jnp.mean(token_mean(found.gradient * latents, num_tokens) * weights)
    target = jax.lax.stop_gradient(latents) - found.weight[:, None, None] * found.gradient
    return jnp.mean(token_mean(jnp.square(latents - target), num_tokens))


def latent_distance(kind: str, huber_c: float) -> Distance:
    """The mean over tokens of `consistency.pointwise`."""

    def distance(drawn, wanted, batch, frozen):
        return token_mean(pointwise(drawn - wanted, kind, huber_c), batch["num_tokens"])

    return distance


class Draws(NamedTuple):
    """The random numbers of a step.

    Attributes:
      start: f32[B, N, F], what the student draws of.
      t, noise: i32[B] and f32[B, N, F], at which its pictures are compared.
      fake_t, fake_noise: likewise, at which the fake network learns them.
    """

    start: jax.Array
    t: jax.Array
    noise: jax.Array
    fake_t: jax.Array
    fake_noise: jax.Array


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """`Gradients` of a student, along the difference of two scores, and of the fake network, which denoises what the
    student draws. Neither passes through the other.

    A batch needs captions; of its tokens only those of pairs are heeded. Where it has NOISE and IS_PAIR, as many rows
    are pairs as are not: there the student draws of the teacher's noise, and is to draw what the teacher drew. No
    caption is dropped.

    The metrics are "dm", "regression", "fake" and "loss", the weighted sum. The student's are those of its turns times
    `fake_updates`, and 0 between two turns, so that means over whole rounds are theirs.

    Attributes:
      networks: student, fake and teacher.
      schedule: the training process.
      guidance: w of the teacher's cond + w·(cond - null): one more is what samplers call the guidance scale.
      distance: of the regression.
      regression_weight: of the mean distance over pairs.
      fake_updates: steps from one of the student's turns to the next; the fake network learns in every step.
      min_snr_gamma: see `matching_loss`.
    """

    networks: Followed
    schedule: DiffusionSchedule
    guidance: float
    distance: Distance
    regression_weight: float = 0.25
    fake_updates: int = 1
    min_snr_gamma: float = 0.0

    def __call__(self, trained: Params, held: Held, batch: Batch, keys: jax.Array) -> tuple[Params, Metrics]:
        shape = batch["tokens"].shape[1:]
        start, noise, fake_noise, t, fake_t = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 5))(keys), 1, 0)
        normal, timesteps = (jax.vmap(draw) for draw in (partial(jax.random.normal, shape=shape), _timestep))
        draws = Draws(normal(start), timesteps(t), normal(noise), timesteps(fake_t), normal(fake_noise))
        return self.of_draws(trained, held, batch, draws)

    def of_draws(self, trained: Params, held: Held, batch: Batch, draws: Draws) -> tuple[Params, Metrics]:
        """The gradients of random numbers that are given."""
        student, conditions = self.networks.drawn(trained), dict(batch)
        is_pair, noise = conditions.pop(IS_PAIR, None), conditions.pop(NOISE, None)
        tokens = conditions.pop("tokens").astype(jnp.float32)
        conditions["text_drop"] = jnp.zeros_like(conditions["text_drop"])
        start = draws.start
        if is_pair is not None and noise is not None:
            start = jnp.where(is_pair[:, None, None], noise, start)

        def student_loss(student):
            latents = self._draw(student, held, start, conditions)
            terms = {"dm": self._matching_loss(trained[FAKE], held, latents, conditions, draws)}
            loss = terms["dm"]
            if is_pair is not None:
                apart = self.distance(latents, tokens, conditions, held.frozen)
                terms["regression"] = 2 * jnp.mean(jnp.where(is_pair, apart, 0.0))
                loss = loss + self.regression_weight * terms["regression"]
            return loss, ({**terms, "loss": loss}, latents)

        def turn(student):
            (_, (metrics, latents)), grads = jax.value_and_grad(student_loss, has_aux=True)(student)
            return grads, jax.tree.map(lambda value: self.fake_updates * value, metrics), latents

        def between(student):
            metrics = dict.fromkeys(("dm", *["regression"] * (is_pair is not None), "loss"), jnp.zeros(()))
            return jax.tree.map(jnp.zeros_like, student), metrics, self._draw(student, held, start, conditions)

        if self.fake_updates == 1:
            grads, metrics, latents = turn(student)
        else:
            grads, metrics, latents = jax.lax.cond(held.step % self.fake_updates == 0, turn, between, student)
        fake, fake_grads = jax.value_and_grad(self._fake_loss)(trained[FAKE], latents, conditions, draws)
        return {**grads, FAKE: fake_grads}, {**metrics, "fake": fake, "loss": metrics["loss"] + fake}

    def _draw(self, student: Params, held: Held, start, conditions):
        return one_step(partial(self.networks.apply, student, held.frozen), self.schedule, start, conditions)

    def _matching_loss(self, fake: Params, held: Held, latents, conditions, draws: Draws):
        there, t, count = jax.lax.stop_gradient(latents), draws.t, conditions["num_tokens"]
        x_t = gaussian.q_sample(self.schedule, there, t, draws.noise)
        eps_fake, _ = self.networks.fake(fake)(x_t, t, **conditions)
        teacher = self.networks.teacher(held.frozen)
        null = {name: jnp.asarray(value) for name, value in empty_branch(conditions).items()}
        # cond + w·(cond - null) is null + (1 + w)·(cond - null).
        guided = guide(lambda x, t, given: teacher(x, t, **given), conditions, null, 1.0 + self.guidance)
        found = direction(self.schedule, there, x_t, t, eps_fake, guided(x_t, t)[0], count)
        return matching_loss(self.schedule, latents, found, t, count, min_snr_gamma=self.min_snr_gamma)

    def _fake_loss(self, fake: Params, latents, conditions, draws: Draws):
        x_t = gaussian.q_sample(self.schedule, latents, draws.fake_t, draws.fake_noise)
        eps, _ = self.networks.fake(fake)(x_t, draws.fake_t, **conditions)
        return jnp.mean(token_mean(jnp.square(eps - draws.fake_noise), conditions["num_tokens"]))


def _timestep(key):
    return jax.random.randint(key, (), _FIRST, _LAST + 1)
