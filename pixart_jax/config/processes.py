"""Settings of the process that a model learns: a section of `defaults.SETTINGS`, and what it describes."""

from __future__ import annotations

from typing import Any

from pixart_jax.config.declaration import NOT_NEGATIVE, POSITIVE, Require, Setting, one_of, within
from pixart_jax.diffusion.predictions import PREDICTIONS
from pixart_jax.objectives.timesteps import DENSITIES, Timesteps
from pixart_jax.samplers.predictions import Target

# docs/cheap.md
DIFFUSION = {
    # What the model predicts: the noise "eps", the picture "x0" or "v" of PixArt's discrete process; or "flow", the way
    # from picture to noise of rectified flow, which has no learned variance (config.model.learn_sigma=False).
    "prediction": Setting("eps", one_of(*PREDICTIONS)),
    # How much noise it learns with: "uniform", or "logit_normal" of this mean and standard deviation, SD3's.
    "timesteps": Setting("uniform", one_of(*DENSITIES)),
    "timestep_mean": Setting(0.0, within(-10, 10)),
    "timestep_std": Setting(1.0, POSITIVE),
    # Of "flow": more noise at higher resolutions, where it hides less, in training and in drawing. 1 is none; 0 is
    # SD3's for the resolution, config.model.resolution / 256.
    "shift": Setting(1.0, NOT_NEGATIVE),
}

# A ConfigDict of `defaults`, which imports this module.
_Config = Any


def target_of(config: _Config) -> Target:
    """What a config's model predicts."""
    return Target(config.diffusion.prediction, _shift(config), config.model.learn_sigma)


def timesteps_of(config: _Config) -> Timesteps:
    """Those that it is trained at."""
    own = config.diffusion
    return Timesteps(own.timesteps, own.timestep_mean, own.timestep_std, _shift(config))


def _shift(config: _Config) -> float:
    return config.diffusion.shift or config.model.resolution / 256


def process_fits(config: _Config, require: Require) -> None:
    """Refuses what no process has, and what would draw it wrongly."""
    own, distilled = config.diffusion, config.objective.kind
    flow = own.prediction == "flow"
    require(
        not (flow and config.model.learn_sigma),
        "model.learn_sigma",
        "rectified flow has no variance to learn; set it to False with config.diffusion.prediction='flow'",
    )
    require(flow or own.shift == 1, "diffusion.shift", "is of config.diffusion.prediction='flow'; set it to 1.0")
    unheeded = own.timesteps == "uniform" and (own.timestep_mean, own.timestep_std) != (0, 1)
    require(
        not unheeded,
        "diffusion.timesteps",
        "heeds no timestep_mean and timestep_std; set it to 'logit_normal', or leave those at 0.0 and 1.0",
    )
    can = target_of(config).samplers()
    require(
        config.sample.sampler in can,
        "sample.sampler",
        f"cannot draw from config.diffusion.prediction={own.prediction!r} with config.model.learn_sigma="
        f"{config.model.learn_sigma}; set one of {', '.join(can)}",
    )
    require(
        not config.train.snr_loss or own.prediction == "eps",
        "train.snr_loss",
        "measures the error of eps; set it to False, or config.diffusion.prediction to 'eps'",
    )
    if distilled != "denoising":
        require(
            own.prediction == "eps",
            "diffusion.prediction",
            f"config.objective.kind={distilled!r} distils teachers that predict the noise; set it to 'eps'",
        )
        require(
            own.timesteps == "uniform",
            "diffusion.timesteps",
            f"config.objective.kind={distilled!r} has timesteps of its own; set it to 'uniform'",
        )
