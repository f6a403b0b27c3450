"""A ControlNet by itself, opened wherever it lies, and written as diffusers' research project has it."""

from __future__ import annotations

import json
import pathlib

from pixart_jax.conversion.arrays import WEIGHTS, open_arrays, read_json
from pixart_jax.conversion.control import CONFIG, Control, convert_control, open_control, open_folder
from pixart_jax.conversion.formats.controlnet import CONTROLNET, Half
from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.names.controlnet import CONTROL, RESEARCH, count_copies, revert_controlnet
from pixart_jax.conversion.runs import load_run_control
from pixart_jax.conversion.weight_files import check_weight_file, find_weights
from pixart_jax.errors import InputError
from pixart_jax.models.pixart import PixArt

# What the research project calls it in config.json.
_CLASS = "PixArtControlNetAdapterModel"
_KINDS = (
    "PixArt's .pth with controlnet.* in it, a folder of diffusers' research project, a model of ours with one beside "
    "it, or the workdir of a run that trains one"
)


def open_controlnet(path: pathlib.Path, model: PixArt, *, ema: bool = True) -> Control:
    """The ControlNet of a model.

    Args:
      path: PixArt's `.pth`, whose base model is left aside; the research project's folder, or its file of arrays; what
        tools.convert wrote with a ControlNet in it, or that folder in it; the workdir of a run; or the hub id of one
        of the former, see `hub.fetch`.
      model: the base.
      ema: of a run, the averaged parameters.

    Raises:
      InputError: there is none, it is damaged, or it does not fit the base: lists parameters and shapes.
    """
    if not path.exists():
        try:
            path = fetch(str(path), encoders=False)
        except InputError as error:
            raise InputError(f"{error}\n{path} does not exist here; a ControlNet is {_KINDS}") from error
    if (path / "checkpoints").is_dir():
        return load_run_control(path, model, ema=ema)[0]
    if (path / "model.json").exists():
        if (control := open_control(path, model)) is None:
            raise InputError(f"{path} is a model without a ControlNet; a ControlNet is {_KINDS}")
        return control
    if (path / CONFIG).exists():
        return open_folder(path, model)
    return _open_weights(path, model)


def _open_weights(path: pathlib.Path, model: PixArt) -> Control:
    file = find_weights(path, [f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"]) if path.is_dir() else path
    if file is None:
        raise InputError(f"{path} holds no ControlNet; one is {_KINDS}")
    check_weight_file(file)
    arrays = open_arrays(file, [CONTROLNET.array, rf"{RESEARCH.replace('.', '[.]')}\d+[.].+"])
    prefix = next((prefix for prefix in (RESEARCH, CONTROL) if any(name.startswith(prefix) for name in arrays)), None)
    if prefix is None:
        names = ", ".join(sorted(arrays)[:4])
        raise InputError(f"{path} holds no ControlNet but arrays called {names} ...; a ControlNet is {_KINDS}")
    research = prefix == RESEARCH
    if research and (odd := [name for name in arrays if not name.startswith(prefix)]):
        raise InputError(f"{path}: these names begin not with {prefix}: {', '.join(odd[:5])}")
    shapes = {name.removeprefix(prefix): arrays.shapes[name] for name in arrays if name.startswith(prefix)}
    if research:
        _check_config(file.with_name("config.json"), count_copies(shapes))
    return convert_control(Half(arrays, prefix, shapes), model, path, research=research)


def _check_config(path: pathlib.Path, num_copies: int) -> None:
    """Raises InputError for a config.json beside the arrays that speaks of another network."""
    if not path.exists():
        return
    fields = read_json(path)
    name, count = fields.get("_class_name", _CLASS), fields.get("num_layers", num_copies)
    # The community's port to Σ has a class of its own.
    if name not in (_CLASS, "PixArtSigmaControlNetAdapterModel"):
        raise InputError(f"{path}: it is a {str(name)[:80]}, not a {_CLASS}")
    if count != num_copies:
        raise InputError(f"{path}: num_layers is {str(count)[:80]}, and the file beside it has {num_copies} copies")


def write_controlnet(target: pathlib.Path, control: Control) -> None:
    """The research project's folder, which its `PixArtControlNetAdapterModel.from_pretrained` opens; of float32.

    Raises:
      InputError: the ControlNet has parameters that the project has no names for.
    """
    import safetensors.numpy

    arrays = revert_controlnet(control.paths, control.read, control.num_copies, research=True)
    target.mkdir()
    fields = {"_class_name": _CLASS, "num_layers": control.num_copies}
    (target / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    named = {f"{RESEARCH}{name}": array for name, array in arrays}
    safetensors.numpy.save_file(named, target / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
