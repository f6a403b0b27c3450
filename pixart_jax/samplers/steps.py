"""What samplers are made of: what they ask for a prediction, for noise, and what has the last word on a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# (x [B, ...], t f32[B]) -> (eps, v), the shape of `pixart_jax.models.pixart.ModelOutput`.
Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]

# (params, tokens [B, N, p·p·C], t f32[B], **conditions) -> (eps, v): a model, with whatever tree holds its parameters.
Apply = Callable[..., tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True, eq=False)
class Stateful:
    """A denoiser, or whatever one is made from, that hands something on from one of its calls to the next.

    Attributes:
      call: takes what the last call handed on as its last argument, and returns (result, what it hands on).
      begin: x [B, ...] -> what the first call is handed.
    """

    call: Callable
    begin: Callable[[jax.Array], Any]

    def __call__(self, x, t):
        return self.call(x, t, self.begin(x))[0]


def stateful(function: Callable) -> Stateful:
    """The function, as one that may hand on something."""
    if isinstance(function, Stateful):
        return function
    return Stateful(lambda *args, **kwargs: (function(*args[:-1], **kwargs), args[-1]), lambda x: ())


# Step counter i32[] -> standard normal noise of x's shape.
NoiseFn = Callable[[jax.Array], jax.Array]

# (x f32[B, ...] as a step left it, its timestep t f32[], noise of x's shape) -> what the next step starts from. t is -1
# after the last step, for the picture; `diffusion.gaussian.noise_level` gives x's. The noise is standard normal, that
# step's.
Correct = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# What of a step was not finite first, by the number that `faults` gives; 0 is nothing.
FAULTS = ("", "the model's prediction", "the picture after the step", "the picture after its correction")


# What a step hands to the next: x f32[B, ...] first, and whatever else a solver keeps.
Carry = tuple[Any, ...]

# (denoiser, noise, correct, carry, that step's row) -> (carry, x_0 as predicted f32[B, ...], `faults` i32[B]). Last of
# what is carried is what the denoiser hands on.
TakeStep = Callable[[Stateful, NoiseFn, Correct | None, Carry, Mapping[str, Any]], tuple[Carry, jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A solver with its coefficients computed: (denoiser, x f32[B, ...], noise, correct) -> x_0.

    Attributes:
      rows: coefficients by name, one for each call of the model: f32 or i32[S, ...].
      take_step: with one of the rows. A deterministic solver uses the noise for `correct` alone, and both may be None.
        Solvers whose steps differ in their rows alone have the same one.
      begin: x -> what the first step is handed, but for what the denoiser hands on.
      first_t: the timestep of x: that of pure noise, or a later one, see `build_sampler`.
    """

    rows: Mapping[str, np.ndarray]
    take_step: TakeStep
    begin: Callable[[jax.Array], Carry]
    first_t: float

    @property
    def num_rows(self) -> int:
        """S, how often the model is called."""
        return len(next(iter(self.rows.values())))

    def __call__(self, denoise: Denoiser, x: jax.Array, noise_fn: NoiseFn, correct: Correct | None = None) -> jax.Array:
        return self.run(denoise, x, noise_fn, correct)[0]

    def run(
        self, denoise: Denoiser, x: jax.Array, noise_fn: NoiseFn, correct: Correct | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """All steps as one loop whose body is compiled once -> (x_0, `faults` of each step i32[S, B])."""

        model = stateful(denoise)

        def body(carry, row):
            carry, _, found = self.take_step(model, noise_fn, correct, carry, row)
            return carry, found

        rows = {name: jnp.asarray(values) for name, values in self.rows.items()}
        carry, found = jax.lax.scan(body, (*self.begin(x), model.begin(x)), rows)
        return carry[0], found


def faults(*values: jax.Array) -> jax.Array:
    """The number in FAULTS, i32[B], of the first of a step's [B, ...] values that holds NaN or infinity."""
    found = jnp.zeros(len(values[0]), jnp.int32)
    for number in range(len(values), 0, -1):
        value = values[number - 1]
        finite = jnp.isfinite(value).all(axis=tuple(range(1, value.ndim)))
        found = jnp.where(finite, found, number)
    return found
