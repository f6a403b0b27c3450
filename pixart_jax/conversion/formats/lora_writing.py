"""Writes adapters as others open them: PEFT's folder, and diffusers' file."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import numpy as np

from pixart_jax.adapters.layers import PATCH_EMBEDDING_NAME
from pixart_jax.conversion.formats.lora import LoraWeights
from pixart_jax.conversion.formats.lora_reading import FEW_STEPS, METADATA
from pixart_jax.conversion.names.lora import CONFIG_FILE, DIFFUSERS_PREFIX, PEFT_PREFIX, WEIGHT_FILES


def write_peft(target: pathlib.Path, lora: LoraWeights) -> None:
    """A folder that `peft.PeftModel.from_pretrained` opens over diffusers' transformer; of float32."""
    import safetensors.numpy

    target.mkdir()
    (target / CONFIG_FILE).write_text(json.dumps(peft_config(lora), indent=2) + "\n", encoding="utf-8")
    safetensors.numpy.save_file(_arrays(lora, PEFT_PREFIX), target / WEIGHT_FILES[0], metadata=_header(lora))


def write_diffusers_lora(target: pathlib.Path, lora: LoraWeights) -> None:
    """A safetensors file as diffusers' `save_lora_weights` writes it, with its scales in the header; of float32."""
    import safetensors.numpy

    config = {f"{DIFFUSERS_PREFIX}{key}": value for key, value in peft_config(lora).items()}
    metadata = _header(lora) | {METADATA: json.dumps(config, indent=2, sort_keys=True)}
    safetensors.numpy.save_file(_arrays(lora, DIFFUSERS_PREFIX), target, metadata=metadata)


def _header(lora: LoraWeights) -> dict[str, str]:
    """What a safetensors file says of itself; others do not look for how it is to be drawn with."""
    return {"format": "pt"} | ({FEW_STEPS: json.dumps(lora.few_steps._asdict())} if lora.few_steps else {})


def peft_config(lora: LoraWeights) -> dict[str, Any]:
    """PEFT's configuration: the commonest rank and alpha, and patterns for the other layers."""
    ranks = {name: layer.rank for name, layer in lora.layers.items()}
    alphas = {name: _number(layer.alpha) for name, layer in lora.layers.items()}
    rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": lora.base or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": lora.rslora,
        "use_dora": any(layer.magnitude is not None for layer in lora.layers.values()),
        "target_modules": sorted(lora.layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _arrays(lora: LoraWeights, prefix: str) -> dict[str, np.ndarray]:
    arrays = {}
    for name, layer in lora.layers.items():
        a, b, magnitude = layer.a.T, layer.b.T, layer.magnitude
        if name == PATCH_EMBEDDING_NAME:
            # A convolution there, over (channel, row, column).
            side = lora.patch_size
            a, b = a.reshape(len(a), side, side, -1).transpose(0, 3, 1, 2), b[:, :, None, None]
            magnitude = None if magnitude is None else magnitude[None, :, None, None]
        arrays[f"{prefix}{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        arrays[f"{prefix}{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
        if magnitude is not None:
            arrays[f"{prefix}{name}.lora_magnitude_vector"] = np.ascontiguousarray(magnitude, np.float32)
    return arrays


# How tools.convert calls them.
ADAPTER_WRITERS = {"peft": write_peft, "diffusers-lora": write_diffusers_lora}
