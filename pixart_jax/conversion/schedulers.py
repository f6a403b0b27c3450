"""What a diffusers pipeline's scheduler says of its transformer: what that predicts, and over which noise schedule.

All that draws and trains here takes a network that predicts the noise of DDPM's linear schedule of 1,000 steps. How a
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
from pixart_jax.conversion.scheduler_samplers import WALKS, Drawing, told_drawing
from pixart_jax.errors import InputError

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
    for name in names:
        if name not in _CLASSES:
            where = _CONFIG if config.get("_class_name") == name else "model_index.json"
            return f"{where}: a {name} is for a network of another kind than one that predicts the noise of DDPM"
    if not config and names[:1] != [_DISTILLED]:
        return None
    odd = _odd_fields(config, _CLASSES[names[0]] if names else _BETAS)
    if names[:1] == [_DISTILLED]:
        odd += WALKS[_DISTILLED].differences(config)
    return f"{_CONFIG}: {'; '.join(odd)}" if odd else None


def scheduler_drawing(pipeline: pathlib.Path) -> Drawing | None:
    """How a pipeline's scheduler without a `scheduler_problem` draws, where a sampler of ours draws so too."""
    names, config = _read_scheduler(pipeline)
    return told_drawing(names[0], config) if names and config else None


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
