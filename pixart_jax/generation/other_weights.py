"""What is no model of ours and no run, but could become one: said with the command that makes it so."""

from __future__ import annotations

import pathlib
import re
import shlex

from pixart_jax.commands import command
from pixart_jax.errors import InputError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def refuse_other_weights(path: pathlib.Path) -> None:
    """Raises InputError for weights that are to be converted first, and for a folder near one that is meant."""
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise _unconverted(path, f"there is no folder {path} here; a model of the Hugging Face hub")
        raise InputError(f"{path} does not exist: name what tools.convert wrote, or the workdir of a training run")
    if path.is_file():
        if path.suffix in _SUFFIXES:
            raise _unconverted(path, f"{path} is a file of weights, which")
        raise InputError(f"{path} is a file: name what tools.convert wrote, or the workdir of a training run")
    if (path / "model_index.json").exists():
        raise _unconverted(path, f"{path} is a pipeline of diffusers, which")
    run = next((folder for folder in (path.parent, path.parent.parent) if (folder / "checkpoints").is_dir()), None)
    if run and "checkpoints" in path.parts[-2:]:
        raise InputError(f"{path} is a part of a run: name its workdir, {run}; its newest checkpoint is drawn from")
    if (path / "checkpoints").is_dir():
        return
    if (path.parent / "model.json").exists():
        raise InputError(f"{path} is a part of a model: name all of it, {path.parent}")
    if (path / "config.json").exists() and (path / "params").is_dir():
        raise InputError(f"{path} is an encoder: name the folder of a model, and this one as --text-encoder or --vae")
    if any(found.suffix in _SUFFIXES for found in path.iterdir()) or (path / "transformer").is_dir():
        raise _unconverted(path, f"{path} holds weights that")
    if found := sorted(path.glob("*/model.json")):
        raise InputError(f"{path} is no model, but {found[0].parent} is: name that")


def _unconverted(path: pathlib.Path, what: str) -> InputError:
    name = path.stem if path.is_file() else path.absolute().name
    source, target = shlex.quote(str(path)), shlex.quote(f"weights/{name}")
    return InputError(
        f"{what} must be converted first:\n  {command('convert')} {source} {target}\nThen draw from that: "
        f"{command('sample')} --checkpoint {target}"
    )
