"""Models of every prediction as samplers take them: the one place where a model's output becomes what they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pixart_jax.diffusion.flow import FLOW_STEPS, FlowSchedule
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.predictions import eps_of
from pixart_jax.diffusion.schedule import DiffusionSchedule, linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.samplers import FLOW_SAMPLERS, SAMPLERS
from pixart_jax.samplers.steps import Apply, Stateful


class Target(NamedTuple):
    """What a model was trained to predict.

    Attributes:
      prediction: one of `diffusion.predictions.PREDICTIONS`.
      flow_shift: of rectified flow, the `FlowSchedule.shift` that it is drawn with; 1 of others.
      learned_variance: whether it predicts that of a step backwards too, which "iddpm" draws from.
    """

    prediction: str = "eps"
    flow_shift: float = 1.0
    learned_variance: bool = True

    @property
    def stored(self) -> dict[str, Any]:
        """By the names of `conversion.stored.StoredModel`, which has its architecture beside it."""
        return {"prediction": self.prediction, "flow_shift": self.flow_shift}

    def samplers(self) -> tuple[str, ...]:
        """Those that can draw from it, whatever else they need."""
        flow = self.prediction == "flow"
        left_out = (() if flow else FLOW_SAMPLERS) + (() if self.learned_variance and not flow else ("iddpm",))
        return tuple(name for name in SAMPLERS if name not in left_out)

    def schedule(self, sampler: str) -> DiffusionSchedule | FlowSchedule:
        """What a sampler walks along to draw from it.

        Raises:
          InputError: it cannot.
        """
        if sampler not in SAMPLERS or sampler in self.samplers():
            return FlowSchedule(self.flow_shift) if sampler in FLOW_SAMPLERS else _discrete()
        why = (
            "needs the learned variance, and this model has none"
            if sampler == "iddpm"
            else f"begins with noise alone and draws from rectified flow, and this model predicts {self.prediction!r}"
        )
        raise InputError(f"sampler = {sampler!r}: {why}; take one of {', '.join(self.samplers())}")

    def fit(self, apply: Apply | Stateful, schedule: DiffusionSchedule | FlowSchedule) -> Apply | Stateful:
        """The model as samplers over a schedule call it, (params, x, t, **conditions) -> (eps, v).

        Over a FlowSchedule the flow stands in the place of eps. Over the discrete process a model of rectified flow is
        called where its own process has as much noise for its signal: at the same picture and noise, rescaled. Guidance
        sees eps, in which all predictions are linear: it is the same before and after.
        """
        if self.prediction == "eps" or isinstance(schedule, FlowSchedule):
            return apply
        if isinstance(apply, Stateful):
            call = apply.call

            def handing_on(params, x, t, state, **conditions):
                converted = self._on(x, t, schedule)
                (output, v), state = call(params, converted.x, converted.t, state, **conditions)
                return Predicted(converted.eps(output), v), state

            return Stateful(handing_on, apply.begin)
        model: Apply = apply

        def plain(params, x, t, **conditions):
            converted = self._on(x, t, schedule)
            output, v = model(params, converted.x, converted.t, **conditions)
            return Predicted(converted.eps(output), v)

        return plain

    def _on(self, x, t, schedule: DiffusionSchedule) -> _Call:
        alpha, sigma = (level.reshape(-1, *(1,) * (x.ndim - 1)) for level in noise_level(schedule, t))
        if self.prediction == "flow":
            whole = alpha + sigma
            x, alpha, sigma = x / whole, alpha / whole, sigma / whole
            t = FLOW_STEPS * sigma.reshape(-1)
        return _Call(x, t, lambda output: eps_of(self.prediction, alpha, sigma, x, output))


@functools.cache
def _discrete() -> DiffusionSchedule:
    """The same one each time: programs are known by it."""
    return linear_schedule()


class Predicted(NamedTuple):
    """The shape of `models.pixart.ModelOutput`, with the noise that the model's own prediction implies."""

    eps: jax.Array
    v: jax.Array | None


class _Call(NamedTuple):
    """What a model is given, and what makes eps of what it predicts."""

    x: jax.Array
    t: jax.Array
    eps: Callable[[jax.Array], jax.Array]


# Of all that does not say.
EPS = Target()
