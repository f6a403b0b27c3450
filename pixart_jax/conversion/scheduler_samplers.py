"""diffusers' schedulers that walk as one of our samplers does: a pipeline's becomes that sampler, and that becomes it
again.

Source: diffusers 0.42, the constructors of `diffusers.schedulers`, whose defaults stand for what a file lacks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from pixart_jax.samplers import FEW_STEPS, guidance_of
from pixart_jax.samplers.predictions import Target


class Drawing(TypedDict):
    """How a model draws by default: the fields of StoredModel of these names."""

    sampler: str
    num_steps: int
    guidance: str


@dataclasses.dataclass(frozen=True)
class Walk:
    """A scheduler of diffusers that draws as one of our samplers.

    Attributes:
      sampler: ours.
      num_steps: that PixArt's authors take.
      fields: as they must be.
      defaults: of the class, where other than that.
    """

    sampler: str
    num_steps: int
    fields: Mapping[str, Any]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """What of a scheduler_config.json makes it walk otherwise, in words."""
        given = {**self.fields, **self.defaults, **config}
        return [
            f"{name} = {given[name]!r}{'' if name in config else ', by default'}, must be {value!r}"
            for name, value in self.fields.items()
            if given[name] != value
        ]


_NOISE_LEVELS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "timestep_spacing": "linspace",
}
WALKS = {
    "EulerDiscreteScheduler": Walk(
        "euler",
        20,
        {
            **_NOISE_LEVELS,
            "interpolation_type": "linear",
            "final_sigmas_type": "zero",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    "HeunDiscreteScheduler": Walk("heun", 20, {**_NOISE_LEVELS, "clip_sample": False}),
    "LCMScheduler": Walk(
        "lcm-diffusers", 4, {"original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False}
    ),
    "SASolverScheduler": Walk(
        "sa-solver-diffusers",
        25,
        {
            **_NOISE_LEVELS,
            "algorithm_type": "data_prediction",
            "predictor_order": 2,
            "corrector_order": 2,
            "lower_order_final": True,
            "lambda_min_clipped": -math.inf,
            "tau_func": None,
        },
    ),
}

# Likewise of rectified flow: here what they predict is a part of how they walk.
FLOW_WALKS = {
    "FlowMatchEulerDiscreteScheduler": Walk(
        "flow-euler",
        20,
        {
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_dynamic_shifting": False,
            "invert_sigmas": False,
            "shift_terminal": None,
            "stochastic_sampling": False,
        },
    ),
    "FlowMatchHeunDiscreteScheduler": Walk("flow-heun", 20, {}),
    "DPMSolverMultistepScheduler": Walk(
        "flow-dpm-solver",
        20,
        {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
            "lower_order_final": True,
            "thresholding": False,
            "use_dynamic_shifting": False,
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_lu_lambdas": False,
        },
        {"prediction_type": "epsilon", "use_flow_sigmas": False},
    ),
}
# What diffusers calls our predictions.
PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}

# Our samplers that a pipeline of diffusers cannot do without, by the scheduler that draws as they do, or nearly so.
_CLASS_OF = {walk.sampler: name for name, walk in WALKS.items()} | {
    "lcm": "LCMScheduler",
    "sa-solver": "SASolverScheduler",
}
# Clipped, as it is by default, a one-step student's picture would be another.
_ONE_STEP = {"_class_name": "DDPMScheduler", "clip_sample": False}
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
# What JSON, or the class, has no word for.
_UNSAID = ("tau_func", "lambda_min_clipped")


def drawing_of(sampler: str, num_steps: int = 20) -> Drawing:
    """How a model draws that is drawn with a sampler.

    Args:
      num_steps: where the sampler does not say it.
    """
    return {
        "sampler": sampler,
        "num_steps": FEW_STEPS.get(sampler, num_steps),
        "guidance": guidance_of(sampler),
    }


def told_drawing(name: str, config: Mapping[str, Any]) -> Drawing | None:
    """How a pipeline's model draws, where its scheduler of that class walks as a sampler of ours; else None."""
    walk = WALKS.get(name)
    return None if walk is None or walk.differences(config) else drawing_of(walk.sampler, walk.num_steps)


def scheduler_of(sampler: str) -> dict[str, Any] | None:
    """The scheduler_config.json that draws as a sampler; None where any of DPM-Solver++ will do."""
    if sampler == "dmd":
        return {**_ONE_STEP, **_BETAS, "prediction_type": "epsilon"}
    if sampler not in _CLASS_OF:
        return None
    name = _CLASS_OF[sampler]
    fields = {key: value for key, value in WALKS[name].fields.items() if key not in _UNSAID}
    return {"_class_name": name, **_BETAS, "prediction_type": "epsilon", **fields}


def predicting(config: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """A scheduler_config.json of a model that predicts the noise, for one that predicts something else.

    Args:
      config: of DPM-Solver++, where it is rectified flow: PixArt's pipelines cannot call diffusers' other schedulers of
        that.
    """
    said: dict[str, Any] = {"prediction_type": PREDICTION_TYPES[target.prediction]}
    if target.prediction == "flow":
        said |= {"use_flow_sigmas": True, "flow_shift": target.flow_shift}
    return {**config, **said}


def how_to_call(sampler: str, family: str) -> str | None:
    """In a line, how a pipeline with the scheduler of a sampler for few steps is to be called; None of another."""
    if sampler == "dmd" and family == "sigma":
        return "diffusers' PixArtSigmaPipeline does not draw in one step, as this model does"
    if sampler == "dmd":
        return "this model draws in one step: call it with num_inference_steps=1, timesteps=[400], guidance_scale=1.0"
    few = FEW_STEPS.get(sampler)
    if few is None:
        return None
    return f"this model draws in few steps: call it with num_inference_steps={few}, guidance_scale=0.0"
