"""Any model's arrays by name, from PyTorch's and safetensors files, each read when it is asked for."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy, and with it safetensors, bfloat16
import numpy as np
import safetensors

from pixart_jax.conversion.torch_files import MAX_RATIO, load_torch
from pixart_jax.conversion.weight_files import check_weight_file
from pixart_jax.conversion.wrappers import find_prefix, unwrap
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_bytes

# The stem of diffusers' files.
WEIGHTS = "diffusion_pytorch_model"

# As the two libraries call what can be converted.
_FLOATS = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}


class FileArrays(Mapping[str, np.ndarray]):
    """The arrays of a checkpoint's files, each read when it is asked for.

    Attributes:
      shapes: of each.
      kinds: of each, what its numbers are, as its library calls it.
      files: of each, the file that holds it.
      bfloat16: whether all of them come as that.
      notes: for people: what was stripped from the files' names, and what in them was left out.
    """

    shapes: dict[str, tuple[int, ...]]
    kinds: dict[str, str]
    files: dict[str, pathlib.Path]
    bfloat16: bool
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the array.
        return name in self.shapes

    def check_kinds(self, beside: Collection[str] = ()) -> None:
        """Raises InputError unless all arrays, but those `beside` a model's own, are of floats."""
        for name, kind in self.kinds.items():
            if name in beside:
                continue
            # An integer would be converted without a word, though without its scale it means nothing.
            if kind not in _FLOATS:
                raise InputError(
                    f"{self.files[name]}: only float32, float16 and bfloat16 weights can be converted, not quantised, "
                    f"sparse, nested or meta ones; its {name} is {kind}"
                )


def open_arrays(file: pathlib.Path, markers: Collection[str], beside: str = "(?!)") -> FileArrays:
    """Any model's names to arrays, each read when it is asked for.

    Args:
      file: safetensors or PyTorch's, or the index of several of them.
      markers, beside: see `strip_prefix`.

    Raises:
      InputError: it is damaged, or a file that it names is not there, or it holds other arrays than floats.
    """
    return strip_prefix(open_checkpoint(file, None)[0], markers, file, beside)


def open_checkpoint(file: pathlib.Path, ema: bool | None) -> tuple[FileArrays, str]:
    """As `open_arrays`, of a file that may hold several sets of weights, and arrays of any kind.

    Args:
      ema: see `sources.open_source`.

    Returns:
      The arrays; and which of several sets they are, as the file calls it, or "".
    """
    if file.name.endswith(".bin.index.json"):
        return _Tensors([(part, unwrap(load_torch(part), part, None)[0]) for part in _sharded(file)]), ""
    if file.name.endswith(".json"):
        return _Safetensors(_sharded(file)), ""
    if file.suffix == ".safetensors":
        return _Safetensors([file]), ""
    state_dict, weights = unwrap(load_torch(file), file, ema)
    return _Tensors([(file, state_dict)]), weights


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file, of whatever numbers: diffusers' schedulers have infinite ones.

    Raises:
      InputError: it is none, or no small regular file.
    """
    try:
        data = read_bytes(path, "download it again")
    except InputError as error:
        why = str(error).removeprefix(f"{path} ").removeprefix("cannot be read: ")
        raise InputError(f"{path} is damaged or cannot be read: {why}") from error
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or cannot be read: {error}; download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object; download it again")
    return value


def _sharded(index: pathlib.Path) -> list[pathlib.Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} is damaged: weight_map should name the file of each array; download it again")
    files = sorted(set(map(str, weight_map.values())))
    # Names, not paths: the files lie beside their index.
    paths = [index.with_name(pathlib.PurePath(name).name) for name in files]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise InputError(f"{index} names files that are not there: {', '.join(missing)}; download them")
    return paths


class _Safetensors(FileArrays):
    """Those of safetensors files."""

    def __init__(self, paths: list[pathlib.Path]):
        self._opened: dict[str, Any] = {}
        self.shapes, self.kinds, self.files = {}, {}, {}
        for path in paths:
            check_weight_file(path)
            try:
                file = safetensors.safe_open(path, "numpy")
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
                kinds = {name: found.get_dtype() for name, found in slices.items()}
            except (safetensors.SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged, or no safetensors file: {error}; download it again") from error
            _check_new(path, shapes, self.shapes)
            self._opened |= dict.fromkeys(shapes, file)
            self.shapes |= shapes
            self.kinds |= kinds
            self.files |= dict.fromkeys(shapes, path)
        self.bfloat16 = set(self.kinds.values()) == {"BF16"}

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._opened[name].get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{self.files[name]}: {name} cannot be read: {error}; download it again") from error


class _Tensors(FileArrays):
    """PyTorch tensors as numpy arrays: views of the memory-mapped file, except that bfloat16 becomes float32.

    Args:
      state_dicts: those of several files, with their paths.
    """

    bfloat16 = False

    def __init__(self, state_dicts: list[tuple[pathlib.Path, dict[Any, Any]]]):
        self._tensors: dict[str, Any] = {}
        self.files = {}
        for path, state_dict in state_dicts:
            _check_tensors(path, state_dict)
            _check_new(path, state_dict, self._tensors)
            self._tensors |= state_dict
            self.files |= dict.fromkeys(state_dict, path)
        self.kinds = {name: _kind(tensor) for name, tensor in self._tensors.items()}
        # Nested ones have none.
        self.shapes = {
            name: () if self.kinds[name] == "nested" else tuple(tensor.shape) for name, tensor in self._tensors.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach().resolve_neg()
        return (tensor.float() if self.kinds[name] == "torch.bfloat16" else tensor).numpy()


class _Prefixed(FileArrays):
    """Others' arrays whose names begin with a prefix, by the rest of their names."""

    def __init__(self, arrays: FileArrays, prefix: str, left_out: Collection[str]):
        self._arrays, self._prefix = arrays, prefix
        names = {name: name.removeprefix(prefix) for name in arrays if name.startswith(prefix)}
        self.shapes = {short: arrays.shapes[name] for name, short in names.items()}
        self.kinds = {short: arrays.kinds[name] for name, short in names.items()}
        self.files = {short: arrays.files[name] for name, short in names.items()}
        self.bfloat16 = arrays.bfloat16
        beside = sorted({name.split(".")[0] for name in left_out})
        self.notes = (
            f"{prefix} stripped from its names",
            *([f"{len(left_out)} arrays of {', '.join(beside)} left out"] if left_out else []),
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._prefix + name]


def strip_prefix(arrays: FileArrays, markers: Collection[str], file: pathlib.Path, beside: str = "(?!)") -> FileArrays:
    """The arrays of a model, under the names that it has when nothing wraps it.

    Args:
      markers: patterns of names that such models have.
      beside: pattern of the names of arrays that may be of anything, since nobody reads them.

    Raises:
      InputError: as `wrappers.find_prefix`, or they are other arrays than of floats.
    """
    prefix, left_out = find_prefix(arrays, markers, file)
    if prefix:
        arrays = _Prefixed(arrays, prefix, left_out)
    arrays.check_kinds({name for name in arrays if re.fullmatch(beside, name)})
    return arrays


def torch_array(tensor: Any, path: pathlib.Path) -> np.ndarray:
    """`uncond_prompt_embeds` of a PyTorch file as an array; raises InputError where it is none of floats, or a huge
    view."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{path} holds neither a tensor nor `uncond_prompt_embeds`")
    arrays = _Tensors([(path, {"uncond_prompt_embeds": tensor})])
    arrays.check_kinds()
    return arrays["uncond_prompt_embeds"]


def _kind(tensor: Any) -> str:
    """What a tensor is: its dtype, or why it has no numbers of that to read."""
    import torch

    if tensor.is_nested:
        return "nested"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    return str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)


def _check_tensors(path: pathlib.Path, state_dict: dict[Any, Any]) -> None:
    import torch

    if odd := [
        str(name)
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]:
        raise InputError(f"{path} holds no state dict: these are not names of tensors: {', '.join(odd[:5])}")
    limit = path.stat().st_size * MAX_RATIO
    for name, tensor in state_dict.items():
        # One that has been expanded takes no place in the file, but would in memory.
        if _kind(tensor) in _FLOATS and tensor.element_size() * math.prod(tensor.shape) > limit:
            raise InputError(
                f"{path}: {name} is a view of shape {tuple(tensor.shape)}, larger than the file; save what it is a "
                "view of"
            )


def _check_new(path: pathlib.Path, names: Iterable[str], known: Mapping[str, Any]) -> None:
    if twice := sorted(name for name in names if name in known):
        raise InputError(f"{path}: {twice[0]} is in another of the files too")
