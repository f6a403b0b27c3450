"""What a training run's workdir holds, as weights to convert or to start another run from."""

from __future__ import annotations

import pathlib
from contextlib import contextmanager

import numpy as np

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import ConfigDict, build_model, load_config, position_base
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.stored import StoredModel, StoredParams
from pixart_jax.data.shards.manifest import ENCODERS, Manifest, read_manifest
from pixart_jax.errors import InputError


def load_run(workdir: pathlib.Path, *, ema: bool, step: int | None = None) -> ModelWeights:
    """A checkpoint of a training run; nothing of it is read before it is asked for.

    Args:
      ema: the averaged parameters, not the raw ones.
      step: which checkpoint; None is the newest.

    Raises:
      InputError: there is none, or it is damaged, be it when an array is read; says what else the run has.
    """
    config = load_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    item = "ema_params" if ema else "params"

    def open_step(step: int) -> ModelWeights:
        provenance = {"source": workdir.name, "format": "run", "weights": f"{item} of step {step}"}
        stored = describe_run(config, read_manifest(workdir / ENCODERS, may_be_empty=True), provenance)
        with _naming(checkpoints, step):
            checksums = checkpoints.recorded_checksums(step, item)
            params = StoredParams(checkpoints.directory / str(step) / item, stored.model, checksums)

        def read(path: str) -> np.ndarray:
            with _naming(checkpoints, step):
                array = params[path]
                check_finite(array, f"{workdir}: {item} of step {step}: {path}")
                return array

        return ModelWeights(stored, list(params), read)

    if step is not None:
        return open_step(step)
    while True:
        newest = checkpoints.require_step()
        try:
            return open_step(newest)
        except InputError:
            if checkpoints.latest_step == newest:  # `_naming` has looked again.
                raise


@contextmanager
def _naming(checkpoints: Checkpoints, step: int):
    """Adds to the error of damaged arrays what there is instead of them, or that they have been deleted."""
    try:
        yield
    except InputError as error:
        if checkpoints.has_moved_on(step) and not (checkpoints.directory / str(step)).exists():
            raise InputError(
                f"{checkpoints.directory}: the run goes on, and has deleted the checkpoint of step {step} while it was "
                "read; give the same command again, or keep more of them (config.train.keep_checkpoints)"
            ) from error
        raise InputError(f"{error}; {checkpoints.instead_of(step)}") from error


def describe_run(config: ConfigDict, manifest: Manifest, provenance: dict[str, str]) -> StoredModel:
    """The model that a config trains.

    Args:
      manifest: of the data.
      provenance: see `StoredModel`.
    """
    model = build_model(config)
    return StoredModel(
        model=model,
        position_base=position_base(config),
        position_scale=config.model.position_scale,
        latent_scale=manifest.latent_scale,
        null_text="none" if model.num_classes else "stored",
        caption_cleaning=manifest.caption_cleaning,
        sampler=config.sample.sampler,
        provenance=provenance,
    )
