"""Where else than in its workdir a run's numbers and pictures are shown: `config.train.trackers`."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.training.trackers.base import Aside, Tracker
from pixart_jax.training.trackers.events import Events

# The names that `config.train.trackers` may hold besides tensorboard, each its package's too: what pip installs.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_trackers(names: Sequence[str]) -> None:
    """Before anything is compiled.

    Raises:
      InputError: the package of one of them is not installed.
    """
    for name in names:
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise InputError(
                f"config.train.trackers names {name}, which is not installed: pip install {_PACKAGES[name]}, or leave "
                "it out"
            )


def open_trackers(names: Sequence[str], workdir: pathlib.Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Of the process that writes; a run that goes on goes on in what it was tracked as.

    What TensorBoard's file cannot take is an error, as of all files of the workdir. Of the others no failure ends a
    run: they do their work in a thread of their own, and one that fails is left out from then on.

    Args:
      names: those of `config.train.trackers`.
      workdir: exists.
      config: settings by their full names.

    Raises:
      InputError: one of them cannot begin; says why.
    """
    trackers: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            trackers.append(Events(workdir))
            continue
        try:
            trackers.append(Aside(name, _begun(name, workdir, config)))
        except Exception as error:  # Each package has its own, of settings, accounts and networks.
            for tracker in trackers:
                tracker.close()
            raise InputError(
                f"config.train.trackers: {name} cannot begin: {error}; mend it, or leave {name} out"
            ) from error
    return trackers


def _begun(name: str, workdir: pathlib.Path, config: Mapping[str, Any]) -> Tracker:
    # Here, as either takes seconds to import.
    if name == "wandb":
        from pixart_jax.training.trackers.wandb_runs import WandbRun

        return WandbRun(workdir, config)
    from pixart_jax.training.trackers.mlflow_runs import MlflowRun

    return MlflowRun(workdir, config)
