"""What a diffusers pipeline's scheduler says of its transformer: what that predicts, and over which noise schedule.

All that draws and trains here takes a network that predicts the noise of DDPM's linear schedule of 1,000 steps, or the
picture or v of it; or rectified flow, whose schedulers are told apart by their classes and `use_flow_sigmas`. How a
scheduler then walks along that schedule (its order, its spacing of steps) is no property of the weights, unless they
were distilled for it: a consistency model's scheduler must walk as our sampler does.

Source: diffusers 0.42, the constructors of `diffusers.schedulers`, whose defaults stand for what a file lacks.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pixart_jax.conversion.arrays import read_json
from pixart_jax.conversion.scheduler_samplers import (
    FLOW_WALKS,
    PREDICTION_TYPES,
    WALKS,
    Drawing,
    drawing_of,
    told_drawing,
)
from pixart_jax.conversion.stored_fields import LARGEST, SMALLEST
from pixart_jax.diffusion.flow import FLOW_STEPS
from pixart_jax.errors import InputError
from pixart_jax.samplers.predictions import EPS, Target

# What the network of this package is trained and drawn with.
_NUM_STEPS, _BETA_START, _BETA_END = 1000, 0.0001, 0.02
_BETAS = {"beta_start": _BETA_START, "beta_end": _BETA_END, "beta_schedule": "linear"}
_DISTILLED = "LCMScheduler"
_OTHER_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}

# Classes that walk along a discrete diffusion's schedule, whatever their way, by their defaults of what must be so.
_CLASSES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
            "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
            "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
        ),
        _BETAS,
    ),
    **dict.fromkeys(
        ("DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
        _OTHER_BETAS,
    ),
    _DISTILLED: _OTHER_BETAS | {"beta_schedule": "scaled_linear"},
}  # fmt: skip

_FIXED = {
    "prediction_type": "epsilon",
    "num_train_timesteps": _NUM_STEPS,
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
    # "continuous" gives the network other timesteps.
    "timestep_type": "discrete",
    # Bounds the picture by its own quantiles at every step: no sampler here does it.
    "thresholding": False,
    # Of old versions; false meant that the network predicts the picture.
    "predict_epsilon": True,
}
_OF_DISCRETE = {PREDICTION_TYPES[name]: name for name in ("eps", "x0", "v")}
_NOISE = {**_BETAS, "trained_betas": None}
_CONFIG = "scheduler/scheduler_config.json"


def scheduler_problem(pipeline: pathlib.Path) -> str | None:
    """What keeps a transformer from being used here as its pipeline's scheduler says, in words; None if nothing.
    It names files below the pipeline.

    Args:
      pipeline: the folder. One that has no scheduler says nothing of it.

    Raises:
      InputError: a file is damaged.
    """
    names, config = _read_scheduler(pipeline)
    if _is_flow(names, config):
        odd = _odd_of_flow(names[0], config)
        return f"{_CONFIG}: {'; '.join(odd)}" if odd else None
    for name in names:
        if name not in _CLASSES:
            where = _CONFIG if config.get("_class_name") == name else "model_index.json"
            return f"{where}: a {name} is for a network of another kind than one that predicts the noise of DDPM"
    if not config and names[:1] != [_DISTILLED]:
        return None
    as_eps = {**config, "prediction_type": "epsilon"}
    any_target = config.get("prediction_type") in _OF_DISCRETE and names[:1] != [_DISTILLED]
    odd = _odd_fields(as_eps if any_target else config, _CLASSES[names[0]] if names else _BETAS)
    if names[:1] == [_DISTILLED]:
        odd += WALKS[_DISTILLED].differences(config)
    return f"{_CONFIG}: {'; '.join(odd)}" if odd else None


def scheduler_drawing(pipeline: pathlib.Path) -> Drawing | None:
    """How a pipeline's scheduler without a `scheduler_problem` draws, where a sampler of ours draws so too."""
    names, config = _read_scheduler(pipeline)
    if _is_flow(names, config):
        walk = FLOW_WALKS[names[0]]
        return drawing_of(walk.sampler, walk.num_steps)
    return told_drawing(names[0], config) if names and config else None


def scheduler_target(pipeline: pathlib.Path) -> Target:
    """What a transformer predicts, by its pipeline's scheduler without a `scheduler_problem`; the noise if that says
    nothing."""
    names, config = _read_scheduler(pipeline)
    if _is_flow(names, config):
        return Target("flow", float(config.get(_shift_name(names[0]), 1.0)))
    return Target(_OF_DISCRETE[config["prediction_type"]]) if "prediction_type" in config else EPS


def _is_flow(names: list[str], config: Mapping[str, Any]) -> bool:
    """Whether a scheduler that is known here is of rectified flow."""
    if len(set(names)) != 1 or names[0] not in FLOW_WALKS:
        return False
    return names[0] not in _CLASSES or config.get("prediction_type") == "flow_prediction"


def _shift_name(name: str) -> str:
    return "flow_shift" if name in _CLASSES else "shift"


def _odd_of_flow(name: str, config: Mapping[str, Any]) -> list[str]:
    odd = FLOW_WALKS[name].differences(config)
    if config.get("num_train_timesteps", FLOW_STEPS) != FLOW_STEPS:
        odd.append(f"num_train_timesteps = {config['num_train_timesteps']!r}, must be {FLOW_STEPS}")
    shift = config.get(_shift_name(name), 1.0)
    if type(shift) not in (int, float) or not SMALLEST <= shift <= LARGEST:
        odd.append(f"{_shift_name(name)} = {shift!r}, must be a number from {SMALLEST} to {LARGEST}")
    return odd


def _read_scheduler(pipeline: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    """The classes that a scheduler is opened as, which stands in the index, and was saved by, which its own file says,
    where they are said; and that file."""
    path, index = pipeline / _CONFIG, pipeline / "model_index.json"
    entry = read_json(index).get("scheduler") if index.exists() else None
    listed = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    config = read_json(path) if path.exists() else {}
    return [str(name) for name in (listed, config.get("_class_name")) if name is not None], config


def _odd_fields(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """The fields that are not as they must be."""
    given = {**_FIXED, "trained_betas": None, **defaults, **config}
    odd = [name for name, value in _FIXED.items() if not _same(given[name], value)]
    if given["trained_betas"] is None:
        odd += [name for name, value in _BETAS.items() if not _same(given[name], value)]
    elif not _same_betas(given["trained_betas"]):
        odd.append("trained_betas")
    wanted = _FIXED | _NOISE
    return [
        f"{name} = {_short(given[name])}{'' if name in config else ', by default'}, must be {wanted[name]!r}"
        for name in odd
    ]


def _same(value: Any, wanted: Any) -> bool:
    # Files have rounded what was float32.
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return value == wanted and type(value) is type(wanted)
    return type(value) in (int, float) and math.isclose(value, wanted, rel_tol=1e-6)


def _same_betas(value: Any) -> bool:
    try:
        betas = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return False
    return betas.shape == (_NUM_STEPS,) and np.allclose(
        betas, np.linspace(_BETA_START, _BETA_END, _NUM_STEPS), rtol=1e-5, atol=0
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_scheduler(path: pathlib.Path, problem: str | None) -> None:
    """Raises InputError, with the cure, where `scheduler_problem` has found something in the pipeline around `path`."""
    if problem:
        raise InputError(
            f"{path}: its pipeline's {problem}. Here a transformer predicts the noise (epsilon) of {_NUM_STEPS} linear "
            f"steps of beta from {_BETA_START:g} to {_BETA_END:g}; this one would draw wrong pictures. tools.convert "
            "--ignore-scheduler takes its weights all the same"
        )
