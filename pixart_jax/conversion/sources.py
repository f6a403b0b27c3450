"""Opens weights of any format that we know, without reading them: what is there, under which names, of which shapes."""

from __future__ import annotations

import pathlib
import re

from pixart_jax.conversion.arrays import WEIGHTS, open_checkpoint, strip_prefix
from pixart_jax.conversion.formats.base import Source
from pixart_jax.conversion.formats.controlnet import CONTROLNET
from pixart_jax.conversion.formats.diffusers import DIFFUSERS
from pixart_jax.conversion.formats.orbax import ORBAX
from pixart_jax.conversion.formats.reference import DIT, PIXART
from pixart_jax.conversion.names.lora import CONFIG_FILE, WEIGHT_FILES
from pixart_jax.conversion.weight_files import check_weight_file, find_weights
from pixart_jax.errors import InputError

# What the names of adapters hold, whoever has trained them: PEFT, diffusers, kohya, OneTrainer, LyCORIS.
_ADAPTER = re.compile(r"(^|[._])(lora|dora|hada|lokr|ia3|b?oft|vera|modules_to_save|base_layer)[._]")

# The first that fits decides.
FORMATS = (ORBAX, CONTROLNET, DIT, PIXART, DIFFUSERS)


def open_source(path: str | pathlib.Path, *, ema: bool | None = None) -> Source:
    """Recognises and opens a file or a folder.

    Args:
      path: a PyTorch file (`.pth`, `.pt`, `.bin`) or safetensors file with PixArt's, DiT's or diffusers' names; a
        diffusers transformer folder; a whole pipeline's folder, of which `transformer/` is meant; or a directory of
        ours.
      ema: the averaged weights, or not, where a file has both; None takes what the format's own tools take:
        `state_dict` of PixArt's checkpoints, `ema` of DiT's.

    Raises:
      InputError: there is nothing, it is damaged, it is something else, it holds objects that are not tensors, or it
        has no weights of the kind that `ema` asks for.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _open_directory(path, ema)
    check_weight_file(path)
    return _open_weights(path, path, ema)


def _open_directory(path: pathlib.Path, ema: bool | None) -> Source:
    format = next((format for format in FORMATS if format.file and (path / format.file).exists()), None)
    if format is not None:
        if ema is not None:
            raise InputError(f"{path} holds one set of weights; leave out --ema, --no-ema and config.init.weights")
        return Source(path, format, {}, {})
    folder = path / "transformer" if (path / "model_index.json").exists() else path
    if file := find_weights(folder, [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"]):
        return _open_weights(folder, file, ema)
    if name := next((name for name in (CONFIG_FILE, *WEIGHT_FILES) if (path / name).exists()), None):
        raise _adapter(path / name)
    raise InputError(
        f"{path} is neither a model of ours (model.json), nor a diffusers transformer ({WEIGHTS}.safetensors) or a "
        "pipeline (model_index.json) with one in transformer/"
    )


def _open_weights(path: pathlib.Path, file: pathlib.Path, ema: bool | None) -> Source:
    arrays, weights = open_checkpoint(file, ema)
    if ema is not None and not weights:
        raise InputError(f"{file} holds one set of weights; leave out --ema, --no-ema and config.init.weights")
    if any(_ADAPTER.search(name) for name in arrays):
        raise _adapter(file)
    arrays = strip_prefix(arrays, [format.array for format in FORMATS if format.array], file)
    marked = (format for format in FORMATS if format.array and any(re.fullmatch(format.array, name) for name in arrays))
    format = next(marked, None)
    if format is None:
        names = ", ".join(sorted(arrays)[:4])
        raise InputError(f"{file} holds neither a PixArt nor a DiT; its arrays are called {names} ...")
    return format.look_beside(Source(path, format, arrays, arrays.shapes, weights, notes=arrays.notes), file)


def _adapter(file: pathlib.Path) -> InputError:
    return InputError(
        f"{file} is an adapter (LoRA or the like), which changes a model and is none; name its base, and the adapter "
        "by --lora; or --to peft or --to diffusers-lora, to have the adapter in another format. Those of other kinds "
        "than LoRA and DoRA have to be merged where they were trained (in PEFT merge_and_unload)"
    )
