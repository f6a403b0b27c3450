"""A run in Weights & Biases."""

from __future__ import annotations

import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb

from pixart_jax.training.trackers.base import known_as, remember


class WandbRun:
    """Scalars and pictures over `step`, the config, and what the run runs on as `run`.

    WANDB_PROJECT (else pixart_jax), WANDB_ENTITY, WANDB_NAME (else the workdir's), WANDB_MODE and the others mean what
    they always do; what is written before it is sent lies in workdir/wandb. Points of steps that come again are the
    same, and stand twice.

    Args:
      workdir: exists.
      config: settings by their full names.

    Raises:
      wandb.Error: there is no account, or the server does not answer.
    """

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]):
        name = known_as(workdir).get("wandb") or secrets.token_hex(4)
        # What the run says goes to the screen, and there alone.
        settings: dict[str, Any] = {"console": os.environ.get("WANDB_CONSOLE", "off"), "silent": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pixart_jax"),
            id=name,
            resume="allow",
            name=os.environ.get("WANDB_NAME", workdir.name),
            dir=str(workdir),
            config=dict(config),
            settings=wandb.Settings(**settings),
        )
        self._run.config.update(dict(config), allow_val_change=True)
        # Its own count of steps refuses those that come again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        remember(workdir, "wandb", name)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **scalars})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        stacks = {name: stack if stack.ndim == 4 else stack[None] for name, stack in images.items()}
        self._run.log({"step": step, **{name: [*map(wandb.Image, stack)] for name, stack in stacks.items()}})

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.config.update({"run": dict(facts)}, allow_val_change=True)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
