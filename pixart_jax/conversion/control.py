"""A ControlNet beside its base model: from a reference checkpoint, and as `controlnet/` in the model's directory.

There it is `params/`, written by Orbax, and `controlnet.json`, which says how many blocks are copied; all else about it
is the base model's.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

import flax
import jax
import numpy as np

from pixart_jax.conversion.arrays import read_json
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.names.controlnet import convert_controlnet, count_copies
from pixart_jax.conversion.stored_arrays import StoredArrays, write_params
from pixart_jax.errors import InputError
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt

# Below a model's directory.
FOLDER = "controlnet"
CONFIG = "controlnet.json"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Control:
    """A ControlNet with its parameters, about to be written.

    Attributes:
      num_copies: how many of the base model's first blocks are copied; `models.controlnet.ControlNet`'s.
      paths: '/'-joined path of each parameter.
      read: f32 array of a path; call it once for each, because it may let go of what it gives.
    """

    num_copies: int
    paths: list[str]
    read: Callable[[str], np.ndarray]


def convert_control(
    state_dict: Mapping[str, np.ndarray], model: PixArt, where: pathlib.Path, *, research: bool = False
) -> Control:
    """A ControlNet from its part of a reference checkpoint.

    Args:
      state_dict, research: as `names.controlnet.convert_controlnet` takes them.
      model: the base.
      where: the source's path.

    Raises:
      InputError: it does not fit the base model, or has names of its own; begins with `where`.
    """
    num_copies = count_copies(state_dict)
    try:
        params = convert_controlnet(state_dict, num_copies, control_shapes(model, num_copies), research=research)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Control(num_copies, list(params), params.pop)


def control_shapes(model: PixArt, num_copies: int) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter of a ControlNet; allocates nothing.

    Raises:
      InputError: the base model has no such number of blocks to copy.
    """
    if not 1 <= num_copies <= model.depth - 1:  # As ControlNet demands.
        raise InputError(f"a ControlNet of {num_copies} copied blocks; this model can have 1 to {model.depth - 1}")
    shapes = jax.eval_shape(lambda: copy_blocks(init_params(model, jax.random.key(0)), num_copies))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}


def write_control(directory: pathlib.Path, control: Control) -> None:
    """Writes `controlnet/` into a model's directory.

    Raises:
      OSError: the disk is full, or cannot be written.
    """
    folder = directory / FOLDER
    folder.mkdir()
    write_params(folder / "params", {path: control.read(path) for path in control.paths})
    fields = {"format_version": _FORMAT_VERSION, "num_copies": control.num_copies}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def open_control(directory: pathlib.Path, model: PixArt) -> Control | None:
    """The ControlNet in a model's directory, its arrays read when they are asked for; None where there is none.

    Raises:
      InputError: it is damaged, or another model's.
    """
    folder = directory / FOLDER
    return open_folder(folder, model) if folder.is_dir() else None


def open_folder(folder: pathlib.Path, model: PixArt) -> Control:
    """The ControlNet that `write_control` wrote into a folder.

    Raises:
      InputError: as `open_control`.
    """
    fields = read_json(folder / CONFIG)
    num_copies = fields.get("num_copies")
    if fields != {"format_version": _FORMAT_VERSION, "num_copies": num_copies} or type(num_copies) is not int:
        raise InputError(
            f"{folder / CONFIG} is damaged, or of another format_version than {_FORMAT_VERSION}; convert the weights "
            "again"
        )
    try:
        shapes = control_shapes(model, num_copies)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    arrays = StoredArrays(folder / "params", shapes)

    def read(path: str) -> np.ndarray:
        check_finite(array := arrays[path], f"{folder}: {path}")
        return array

    return Control(num_copies, list(arrays), read)
