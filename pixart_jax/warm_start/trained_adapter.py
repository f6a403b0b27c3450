"""A run that begins with an adapter that was trained already: `config.adapter.init_from`."""

from __future__ import annotations

import math
import pathlib

import numpy as np

from pixart_jax.adapters.layers import layers_of
from pixart_jax.adapters.lora import MAGNITUDE, A, B, scaling
from pixart_jax.config import ConfigDict, build_model, lora_spec
from pixart_jax.conversion.controlnet_files import open_controlnet
from pixart_jax.conversion.formats.lora import LoraWeights
from pixart_jax.conversion.formats.lora_reading import read_lora
from pixart_jax.conversion.lora import adapter_arrays
from pixart_jax.conversion.runs import load_run_lora
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes

KEY = "adapter.init_from"
# Layers that an error names at most.
_SHOWN = 8


def load_trained_adapter(config: ConfigDict) -> dict[str, np.ndarray]:
    """What the run trains, as it was trained before: '/'-joined path to f32 array of each. Of a run the averaged ones.

    Raises:
      InputError: there is no adapter, it is damaged or another model's, or not what the config describes; lists what
        differs.
    """
    path = config.adapter.init_from
    try:
        if config.adapter.kind == "controlnet":
            return _controlnet(config, pathlib.Path(path))
        return _lora(config, pathlib.Path(path))
    except InputError as error:
        raise InputError(f"config.{KEY} = {path!r}: {error}") from error


def _controlnet(config: ConfigDict, path: pathlib.Path) -> dict[str, np.ndarray]:
    control, wanted = open_controlnet(path, build_model(config)), config.adapter.controlnet.num_copies
    if control.num_copies != wanted:
        raise InputError(
            f"it has copies of {control.num_copies} blocks, and config.adapter.controlnet.num_copies is {wanted}; set "
            f"it to {control.num_copies}"
        )
    return {name: np.asarray(control.read(name), np.float32) for name in control.paths}


def _lora(config: ConfigDict, path: pathlib.Path) -> dict[str, np.ndarray]:
    if (path / "checkpoints").is_dir():
        lora = load_run_lora(path, ema=True)[0]
    else:
        # Of a file that does not tell it.
        lora = read_lora(path, alpha=config.adapter.lora.alpha)
    shapes = parameter_shapes(build_model(config))
    arrays = adapter_arrays(lora, shapes)
    _check_spec(config, lora, [name for layer in layers_of(shapes) for name in layer.names])
    return {name: array for name, array in arrays.items() if name.rpartition("/")[2] in (A, B, MAGNITUDE)}


def _check_spec(config: ConfigDict, lora: LoraWeights, names: list[str]) -> None:
    """Raises InputError unless every layer has the rank, the scale and the kind that the config gives it."""
    spec, differing = lora_spec(config), []
    for name in names:
        rank, alpha = spec.of(name)
        wanted = (rank, scaling(rank, alpha, spec.rslora) if rank else 0.0, bool(rank) and spec.dora)
        layer = lora.layers.get(name)
        found = (layer.rank, lora.scale(name), layer.magnitude is not None) if layer else (0, 0.0, False)
        if (wanted[0], wanted[2]) != (found[0], found[2]) or not math.isclose(wanted[1], found[1], rel_tol=1e-6):
            differing.append(f"{name}: {_told(*found)} there, {_told(*wanted)} by the config")
    if differing:
        more = f"\n  and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise InputError(
            "it is not what config.adapter.lora describes; set rank, alpha, targets, dora and the patterns to what it "
            "was trained with:\n  " + "\n  ".join(differing[:_SHOWN]) + more
        )


def _told(rank: int, scale: float, dora: bool) -> str:
    return f"rank {rank}, scale {scale:g}{', DoRA' if dora else ''}" if rank else "no adapter"
