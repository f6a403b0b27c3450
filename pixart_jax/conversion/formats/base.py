"""What a format of weights is, and the pieces that formats share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pixart_jax.conversion.control import Control
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.stored_fields import LARGEST, SMALLEST
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the user says; goes before what a file says. None says nothing.

    Attributes:
      family: a key of `describe.FAMILIES`.
      num_heads: attention heads, which a PyTorch checkpoint does not tell.
      resolution: pixels along one side of the resolution's square.
      position_scale: see `tokens.grid_positions`.
      kv_sampling: one of `layers.KV_SAMPLINGS`: all but the first leave nothing in a PyTorch checkpoint.
      kv_ratio, kv_from: the ratio of such a compression (2), and the first block that has it (the middle one).
      ignore_scheduler: takes the transformer of a pipeline whose scheduler is for another kind of network.
    """

    family: str | None = None
    num_heads: int | None = None
    resolution: int | None = None
    position_scale: float | None = None
    kv_sampling: str | None = None
    kv_ratio: int | None = None
    kv_from: int | None = None
    ignore_scheduler: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for numbers that no model has."""
        if self.num_heads is not None and self.num_heads < 1:
            raise InputError(f"--num-heads {self.num_heads} must be at least 1")
        if self.position_scale is not None and not SMALLEST <= self.position_scale <= LARGEST:
            raise InputError(f"--position-scale {self.position_scale} must be a number from {SMALLEST} to {LARGEST}")


NO_HINTS = Hints()


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights, opened.

    Attributes:
      path: the file or the folder that holds them.
      format: what they are.
      arrays: name to array, in float32 or less, each read when it is asked for; none for our own format.
      shapes: name to shape.
      weights: which of several sets of weights these are, as the file calls it; "" where there is one set.
      config: diffusers' config.json, or None.
      pipeline: {"family": "alpha" or "sigma", "latent_scale": ..., "scheduler_problem": ..., "drawing": ...}, whatever
        of it the pipeline around a diffusers transformer tells; see `schedulers`.
      notes: for people: what was stripped from the file's names, and what else was left out.
    """

    path: pathlib.Path
    format: Format
    arrays: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    weights: str = ""
    config: dict[str, Any] | None = None
    pipeline: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelWeights:
    """A model with its parameters, about to be written.

    Attributes:
      stored: what the model is.
      paths: '/'-joined path of each parameter.
      read: f32 array of a path; call it once for each, because it may let go of what it gives.
      control: the model's ControlNet, or None.
    """

    stored: StoredModel
    paths: list[str]
    read: Callable[[str], np.ndarray]
    control: Control | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """How weights of one format are recognised, opened, described and loaded; `sources.FORMATS` lists them all.

    Attributes:
      name: what the provenance of a model calls it.
      title: what a source is, for people.
      describe: as `describe.describe`.
      load: as `transfer.load_weights`, which adds the null caption that the user gives.
      file: name of a file that makes a folder one of this format; "" where the names of arrays tell it.
      array: pattern of a name that this format's arrays have and those of no other format after it in FORMATS.
      look_beside: adds to a source what lies beside its file of arrays.
      says_all: whether it says all about its model, so that no hint is heeded and its provenance is kept.
      may_be_dit: whether its model may be a class-conditional DiT.
      without_control: the source of the model alone, of a format with a ControlNet beside the model.
    """

    name: str
    title: str
    describe: Callable[[Source, Hints, Hints], StoredModel]
    load: Callable[[Source, Hints, Hints], ModelWeights]
    file: str = ""
    array: str = ""
    look_beside: Callable[[Source, pathlib.Path], Source] = lambda source, file: source
    says_all: bool = False
    may_be_dit: bool = False
    without_control: Callable[[Source], Source] | None = None


def convert_source(
    source: Source, stored: StoredModel, convert: Callable[[dict[str, tuple[int, ...]]], dict[str, np.ndarray]]
) -> ModelWeights:
    """The weights of a source whose names are not ours.

    Args:
      convert: gives the parameters of these paths and shapes, but for the null caption where that is missing.

    Raises:
      InputError: as `convert`; begins with the source's path.
    """
    expected = parameter_shapes(stored.model)
    try:
        params = convert(expected)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    if stored.null_text == "missing":
        # Not zeros: those would make pictures, only worse ones. A NaN reaches every pixel of whoever forgot.
        params[NULL_TEXT] = np.full(expected[NULL_TEXT], np.nan, np.float32)
    return ModelWeights(stored, list(params), params.pop)
