"""A ControlNet beside its base model: from an opened source, and on disk as `controlnet/` in the model's directory.

There it is `params/`, written by Orbax, and `controlnet.json`, which says how many blocks are copied; all else about it
is the base model's.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import flax
import jax
import numpy as np

from pixart_jax.conversion.names.controlnet import BASE, CONTROL, convert_controlnet, count_copies, split_controlnet
from pixart_jax.conversion.sources import Source, read_json
from pixart_jax.conversion.stored import StoredArrays, write_params
from pixart_jax.errors import InputError
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt

# Below a model's directory.
FOLDER = "controlnet"
_CONFIG = "controlnet.json"
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


class _Half(Mapping[str, np.ndarray]):
    """The arrays whose names begin with a prefix, by the rest of their names, each read when it is asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str, shapes: Mapping[str, tuple[int, ...]]):
        self._arrays, self._prefix, self.shapes = arrays, prefix, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def split_source(source: Source) -> tuple[Source, Mapping[str, np.ndarray]]:
    """A source of kind "controlnet" as one of kind "pixart", the base model's, and the ControlNet's names and arrays.

    Raises:
      InputError: it has arrays of neither, or none of the one or the other.
    """
    try:
        base, control = split_controlnet(source.shapes)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    if not base or not control:
        absent = "ControlNet" if base else "base model"
        raise InputError(f"{source.path} holds a ControlNet's checkpoint without the {absent}; give the whole file")
    base_arrays, control_arrays = _Half(source.arrays, BASE, base), _Half(source.arrays, CONTROL, control)
    return dataclasses.replace(source, kind="pixart", arrays=base_arrays, shapes=base), control_arrays


def convert_control(state_dict: Mapping[str, np.ndarray], model: PixArt, where: pathlib.Path) -> Control:
    """The ControlNet of the second half of `split_source`.

    Args:
      model: the base.
      where: the source's path.

    Raises:
      InputError: it does not fit the base model, or has names of its own; begins with `where`.
    """
    num_copies = count_copies(state_dict)
    try:
        params = convert_controlnet(state_dict, num_copies, control_shapes(model, num_copies))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Control(num_copies, list(params), params.pop)


def control_shapes(model: PixArt, num_copies: int) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter of a ControlNet; allocates nothing.

    Raises:
      InputError: the base model has no such number of blocks to copy.
    """
    # As ControlNet demands.
    most = min(model.segments()[0][1], model.depth - 1)
    if not 1 <= num_copies <= most:
        raise InputError(f"a ControlNet of {num_copies} copied blocks; this model can have 1 to {most}")
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
    (folder / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def open_control(directory: pathlib.Path, model: PixArt) -> Control | None:
    """The ControlNet in a model's directory, its arrays read when they are asked for; None where there is none.

    Raises:
      InputError: it is damaged, or another model's.
    """
    folder = directory / FOLDER
    if not folder.is_dir():
        return None
    fields = read_json(folder / _CONFIG)
    num_copies = fields.get("num_copies")
    if fields != {"format_version": _FORMAT_VERSION, "num_copies": num_copies} or type(num_copies) is not int:
        raise InputError(
            f"{folder / _CONFIG} is damaged, or of another format_version than {_FORMAT_VERSION}; convert the weights "
            "again"
        )
    try:
        shapes = control_shapes(model, num_copies)
    except InputError as error:
        raise InputError(f"{folder / _CONFIG}: {error}") from error
    arrays = StoredArrays(folder / "params", shapes)
    return Control(num_copies, list(arrays), arrays.__getitem__)
