"""A run in MLflow."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pixart_jax.training.trackers.base import known_as, remember

T = TypeVar("T")

# MLflow's own limits: of a batch, of a parameter and of a tag.
_BATCH, _MOST_TEXT = 100, 5000


class MlflowRun:
    """Scalars as metrics, pictures as artifacts NAME/step_0001000.png, the config as parameters, what the run runs on
    as tags `run.*`.

    MLFLOW_TRACKING_URI (else the files of workdir/mlruns) and MLFLOW_EXPERIMENT_NAME (else pixart_jax) and the others
    mean what they always do. Parameters cannot change: of a run that goes on, settings that are others now are tags
    `changed.*`.

    Args:
      workdir: exists.
      config: settings by their full names.

    Raises:
      MlflowException: the server does not answer, or refuses.
    """

    def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]):
        where = os.environ.get("MLFLOW_TRACKING_URI") or (workdir / "mlruns").as_uri()
        if where.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # It would rather have a data base.
        self._client = MlflowClient(tracking_uri=where)
        name = known_as(workdir).get("mlflow")
        before: dict[str, str] = {}
        if name:
            try:
                before = self._client.get_run(name).data.params
                self._client.update_run(name, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                name = None  # Removed there, or another server: the run is a new one.
        if not name:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pixart_jax")
            found = self._client.get_experiment_by_name(title)
            experiment = found.experiment_id if found else self._client.create_experiment(title)
            name = self._client.create_run(experiment, run_name=workdir.name).info.run_id
        self._name: str = name
        settings = {key: str(value)[:_MOST_TEXT] for key, value in config.items()}
        self._log([Param(key, value) for key, value in settings.items() if key not in before], "params")
        changed = [key for key, value in settings.items() if before.get(key, value) != value]
        self._log([RunTag(f"changed.{key}", settings[key]) for key in changed], "tags")
        remember(workdir, "mlflow", name)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(1000 * time.time())
        self._log([Metric(name, float(value), now, step) for name, value in scalars.items()], "metrics")

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, stack in images.items():
            pictures = stack if stack.ndim == 4 else stack[None]
            for number, picture in enumerate(pictures):
                suffix = f"_{number}" if len(pictures) > 1 else ""
                self._client.log_image(self._name, picture, artifact_file=f"{name}/step_{step:07d}{suffix}.png")

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        self._log([RunTag(f"run.{name}", text[:_MOST_TEXT]) for name, text in texts.items()], "tags")

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._name)

    def _log(self, entries: Sequence[Any], kind: str) -> None:
        for batch in _batches(entries):
            named: dict[str, Any] = {kind: batch}
            self._client.log_batch(self._name, **named)


def _batches(entries: Sequence[T]) -> Iterator[Sequence[T]]:
    return (entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH))
