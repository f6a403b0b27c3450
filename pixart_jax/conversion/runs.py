"""What a training run's workdir holds, as weights to convert or to start another run from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import flax
import jax
import numpy as np

from pixart_jax.adapters.helpers import HELPERS
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import (
    ConfigDict,
    architecture,
    build_adapter,
    build_model,
    guidance_of_config,
    load_config,
    lora_spec,
    path_drop_of,
    position_base,
    takes_guidance,
    target_of,
)
from pixart_jax.conversion.control import Control, control_shapes
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.formats.lora import FewSteps, LoraWeights
from pixart_jax.conversion.lora import lora_of_arrays
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.stored_arrays import StoredArrays
from pixart_jax.data.shards.manifest import ENCODERS, Manifest, read_manifest
from pixart_jax.errors import InputError
from pixart_jax.models.params import init_params, parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers import FEW_STEPS


def load_run(workdir: pathlib.Path, *, ema: bool, step: int | None = None) -> ModelWeights:
    """A checkpoint of a training run; nothing of it is read before it is asked for.

    Args:
      ema: the averaged parameters, not the raw ones.
      step: which checkpoint; None is the newest.

    Raises:
      InputError: there is none, or it is damaged, be it when an array is read; says what else the run has.
    """
    config = load_config(workdir)
    _refuse_guided(workdir, config)
    model = build_model(config)
    arrays = open_arrays_of_run(workdir, parameter_shapes(model), ema=ema, step=step)
    provenance = {"source": workdir.name, "format": "run", "weights": arrays.name}
    stored = describe_run(config, read_manifest(workdir / ENCODERS, may_be_empty=True), provenance)
    return ModelWeights(stored, list(arrays.paths), arrays.read)


def _refuse_guided(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raises InputError for a student of `adapters.guided`, which no other format has a place for."""
    if takes_guidance(config):
        raise InputError(
            f"{workdir} has learnt to take the guidance as an input (config.objective.guidance_to), and only a run's "
            "workdir holds that; draw from it, or distil with a fixed guidance"
        )


def require_evaluated(workdir: pathlib.Path, config: ConfigDict, *, ema: bool) -> None:
    """Raises InputError for raw parameters that are not those that are evaluated."""
    if not ema and config.optimizer.name == "schedule_free":
        raise InputError(
            f"{workdir}: config.optimizer.name='schedule_free' takes gradients at its raw weights and evaluates "
            "others, which the averaged ones are of; leave out --no-ema and config.init.weights='raw' (a run with "
            "config.train.ema_decay=0 has those alone)"
        )


@dataclasses.dataclass(frozen=True)
class RunArrays:
    """What of a checkpoint is trained, each array read when it is asked for.

    Attributes:
      step: of the checkpoint.
      name: "params of step N" or "ema_params of step N".
      paths, read: '/'-joined paths, and what gives the array of one.
    """

    step: int
    name: str
    paths: Iterable[str]
    read: Callable[[str], np.ndarray]


def open_arrays_of_run(
    workdir: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], *, ema: bool, step: int | None = None
) -> RunArrays:
    """What a run trains.

    Args:
      shapes: of it, by '/'-joined path.
      ema, step: as in `load_run`, and so are the errors.
    """
    require_evaluated(workdir, load_config(workdir), ema=ema)
    checkpoints = Checkpoints(workdir, read_only=True)
    item = "ema_params" if ema else "params"

    def open_step(step: int) -> RunArrays:
        with _naming(checkpoints, step):
            checksums = checkpoints.recorded_checksums(step, item)
            params = StoredArrays(checkpoints.directory / str(step) / item, shapes, checksums, leaving=HELPERS)

        def read(path: str) -> np.ndarray:
            with _naming(checkpoints, step):
                array = params[path]
                check_finite(array, f"{workdir}: {item} of step {step}: {path}")
                return array

        return RunArrays(step, f"{item} of step {step}", params, read)

    if step is not None:
        return open_step(step)
    while True:
        newest = checkpoints.require_step()
        try:
            return open_step(newest)
        except InputError:
            if checkpoints.latest_step == newest:  # `_naming` has looked again.
                raise


def load_run_lora(workdir: pathlib.Path, *, ema: bool, step: int | None = None) -> tuple[LoraWeights, RunArrays]:
    """The adapter that a run trains, and where it was read.

    Args, errors: as `load_run`.
    """
    config = load_config(workdir)
    if config.adapter.kind != "lora":
        raise InputError(f"{workdir}: the run trains no LoRA, but everything (config.adapter.kind)")
    _refuse_guided(workdir, config)
    spec, shapes = lora_spec(config), parameter_shapes(build_model(config))
    arrays = open_arrays_of_run(workdir, trained_shapes(config), ema=ema, step=step)
    found = {path: arrays.read(path) for path in arrays.paths}
    own = config.sample
    few_steps = FewSteps(own.sampler, own.num_steps) if own.sampler in FEW_STEPS else None
    whose = LoraWeights(workdir, {}, spec.rslora, config.init_from, architecture(config)["patch_size"], few_steps)
    return lora_of_arrays(found, shapes, spec.of, whose), arrays


def load_run_control(
    workdir: pathlib.Path, model: PixArt | None, *, ema: bool, step: int | None = None
) -> tuple[Control, RunArrays]:
    """The ControlNet that a run trains, and where it is read.

    Args:
      model: the base that it is to be for; None is the run's own.

    Raises:
      InputError: as `load_run`; or the run trains something else, or the ControlNet is another model's.
    """
    config = load_config(workdir)
    if config.adapter.kind != "controlnet":
        raise InputError(f"{workdir}: the run trains no ControlNet (config.adapter.kind = {config.adapter.kind!r})")
    num_copies = config.adapter.controlnet.num_copies
    try:
        shapes = control_shapes(build_model(config) if model is None else model, num_copies)
    except InputError as error:
        raise InputError(f"{workdir}: {error}") from error
    arrays = open_arrays_of_run(workdir, shapes, ema=ema, step=step)
    return Control(num_copies, list(arrays.paths), arrays.read), arrays


def trained_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each array that a config trains; allocates nothing."""
    model = build_model(config)
    adapter = build_adapter(config, model)
    trained, _ = jax.eval_shape(lambda key: adapter.split(init_params(model, key), key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(trained, sep="/").items()}


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


def _drawn(config: ConfigDict) -> dict[str, Any]:
    """What guides it, and of a model that is distilled to few steps those that it is looked at with."""
    steps = {"num_steps": config.sample.num_steps} if config.sample.sampler in FEW_STEPS else {}
    return {"guidance": guidance_of_config(config), "path_drop": path_drop_of(config), **steps}


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
        **_drawn(config),
        **target_of(config).stored,
    )
