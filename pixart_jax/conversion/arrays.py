"""Any model's arrays by name, from PyTorch's and safetensors files, each read when it is asked for.

Nothing from outside is ever unpickled beyond tensors: PyTorch files are opened with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy, and with it safetensors, bfloat16
import numpy as np
import safetensors

from pixart_jax.errors import InputError

# The stem of diffusers' files.
WEIGHTS = "diffusion_pytorch_model"

# In files that hold more than one set of weights: (the trained ones, their average, which of the two the format's own
# tools load).
_WRAPPERS = (("state_dict", "state_dict_ema", "state_dict"), ("model", "ema", "ema"))


class FileArrays(Mapping[str, np.ndarray]):
    """The arrays of a checkpoint's files, each read when it is asked for.

    Attributes:
      shapes: of each.
      bfloat16: whether all of them come as that.
    """

    shapes: Mapping[str, tuple[int, ...]]
    bfloat16: bool


def open_arrays(file: pathlib.Path) -> FileArrays:
    """Any model's names to arrays, each read when it is asked for.

    Args:
      file: safetensors or PyTorch's, or the index of several of them.

    Raises:
      InputError: it is damaged, or a file that it names is not there.
    """
    return open_checkpoint(file, None)[0]


def open_checkpoint(file: pathlib.Path, ema: bool | None) -> tuple[FileArrays, str]:
    """As `open_arrays`, of a file that may hold several sets of weights.

    Args:
      ema: see `sources.open_source`.

    Returns:
      The arrays; and which of several sets they are, as the file calls it, or "".
    """
    if file.name.endswith(".bin.index.json"):
        tensors: dict[str, Any] = {}
        for part in _sharded(file):
            tensors |= _open_torch(part, None)[0].tensors
        return _Tensors(tensors), ""
    if file.name.endswith(".json"):
        return _Safetensors(_sharded(file)), ""
    if file.suffix == ".safetensors":
        return _Safetensors([file]), ""
    return _open_torch(file, ema)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object")
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
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        dtypes: set[str] = set()
        for path in paths:
            try:
                file = safetensors.safe_open(path, "numpy")
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
                kinds = {found.get_dtype() for found in slices.values()}
            except (safetensors.SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged, or no safetensors file: {error}; download it again") from error
            _check_kinds(path, kinds - {"F64", "F32", "F16", "BF16"})
            dtypes |= kinds
            if twice := sorted(shapes.keys() & self.shapes.keys()):
                raise InputError(f"{path}: {twice[0]} is in another of the files too")
            self._files |= dict.fromkeys(shapes, file)
            self.shapes |= shapes
        self.bfloat16 = dtypes == {"BF16"}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _check_kinds(path: pathlib.Path, odd: set[str]) -> None:
    # An integer would be converted without a word, though without its scale it means nothing.
    if odd:
        raise InputError(
            f"{path}: only float32, float16 and bfloat16 weights can be converted, not quantised ones; it holds "
            f"{', '.join(sorted(odd))}"
        )


class _Tensors(FileArrays):
    """PyTorch tensors as numpy arrays: views of the memory-mapped file, except that bfloat16 becomes float32."""

    bfloat16 = False

    def __init__(self, tensors: Mapping[str, Any]):
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self.tensors[name].detach()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def load_torch(path: pathlib.Path) -> Any:
    """What a PyTorch file holds, memory-mapped where its format allows it.

    Raises:
      InputError: it is damaged, it holds objects other than tensors, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path} can only be opened with PyTorch: pip install torch") from error
    try:
        with path.open("rb") as file:
            # The other format, of PyTorch before 1.6, is a plain pickle.
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    # DiT's trainer adds its command line, which is harmless.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with allowed, warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks to run {name[1]}" if name else "it is no checkpoint of PyTorch's"
        raise InputError(f"{path} is refused, because {what}; only files of plain tensors are loaded") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is damaged, or no PyTorch file: {reason}; download it again") from error


def _open_torch(path: pathlib.Path, ema: bool | None) -> tuple[_Tensors, str]:
    """The tensors, and which of several sets they are or ""."""
    checkpoint = load_torch(path)
    import torch

    weights = ""
    for raw, averaged, default in _WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(raw, checkpoint.get(averaged)), dict):
            weights = {None: default, True: averaged, False: raw}[ema]
            if ema is None and weights not in checkpoint:
                weights = raw if raw in checkpoint else averaged
            if not isinstance(checkpoint.get(weights), dict):
                raise InputError(f"{path} has no {weights}; leave out --ema, --no-ema and config.init.weights")
            checkpoint = checkpoint[weights]
            break
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise InputError(f"{path} holds no dict of tensors")
    if odd := [
        str(name) for name, value in checkpoint.items() if not (isinstance(name, str) and hasattr(value, "shape"))
    ]:
        raise InputError(f"{path} holds no state dict: these are not names of tensors: {', '.join(odd[:5])}")
    kinds = {str(tensor.dtype if tensor.layout is torch.strided else tensor.layout) for tensor in checkpoint.values()}
    _check_kinds(path, kinds - {"torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"})
    return _Tensors(checkpoint), weights
