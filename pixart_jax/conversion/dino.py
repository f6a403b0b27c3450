"""A published DINOv2 or DINOv3 to its sizes and parameters."""

from __future__ import annotations

import collections
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, cast

import flax
import jax
import numpy as np

from pixart_jax.conversion.arrays import open_checkpoint, read_json
from pixart_jax.conversion.names import dino as names
from pixart_jax.conversion.names.rules import Rule, convert_flat
from pixart_jax.errors import InputError
from pixart_jax.models.dino import ACTIVATIONS, Dino, DinoSizes

_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
# Wide as a head of every DINO is.
_HEAD = 64


def load_dino(path: pathlib.Path) -> tuple[Dino, dict[str, Any]]:
    """A network and its nested parameters, f32 arrays of numpy.

    Args:
      path: the folder of a Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel as transformers saves it; or a file
        of facebook's DINOv2 (dinov2_vitb14_pretrain.pth, dinov2_vitb14_reg4_pretrain.pth), or timm's of one without
        registers.

    Raises:
      InputError: it is none of them, or damaged; names every array that does not fit.
    """
    file = _weights(path) if path.is_dir() else path
    arrays, _ = open_checkpoint(file, None)
    left_out = {name for name in arrays if re.fullmatch(names.MASK_TOKEN, name)}
    # Of a DINOv3 without them there are none, and an array that says so.
    left_out |= {name for name in arrays if name.endswith("register_tokens") and 0 in arrays[name].shape}
    arrays.check_kinds(beside=left_out)
    given: Mapping[str, Any] = arrays
    rules: list[Rule]
    if path.is_dir():
        config = _config(path)
        sizes = _sizes(path, config)
        rules = names.DINOV2
        if config["model_type"] == "dinov3_vit":
            rules = names.DINOV3_GATED if sizes.gated else names.DINOV3_PLAIN
            # Its keys have no bias; ours lies beside those of queries and values.
            zeros = np.zeros(sizes.hidden_size, np.float32)
            missing = [f"layer.{i}.attention.k_proj.bias" for i in range(sizes.depth)]
            beside = {name: zeros for name in missing if name not in arrays}
            given = collections.ChainMap(beside, cast(dict[str, Any], arrays))  # Which is only read.
    else:
        sizes, rules = _sizes_of_file(path, arrays), names.FACEBOOK
    network = Dino(sizes)
    picture = np.zeros((1, *(max(sizes.positions, 1) * sizes.patch_size,) * 2, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), picture)["params"]
    expected = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}
    try:
        flat = convert_flat(given, rules, expected, left_out)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return network, flax.traverse_util.unflatten_dict(flat, sep="/")


def _weights(folder: pathlib.Path) -> pathlib.Path:
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} has no model.safetensors; name the folder of a DINO as transformers saves it")


def _config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; name the folder of a DINO as transformers saves it")
    config = read_json(path)
    if config.get("model_type") not in _KINDS:
        raise InputError(f"{path}: model_type is {config.get('model_type')!r}, and must be one of {', '.join(_KINDS)}")
    return config


def _sizes(folder: pathlib.Path, config: Mapping[str, Any]) -> DinoSizes:
    kind = config["model_type"]

    def number(name: str, default: float | None = None) -> Any:
        value = config.get(name, default)
        if type(value) not in (int, float):
            raise InputError(f"{folder / 'config.json'}: {name} must be a number, not {value!r:.80}")
        return value

    width, patch = number("hidden_size"), number("patch_size")
    gated = bool(config.get("use_gated_mlp" if kind == "dinov3_vit" else "use_swiglu_ffn", False))
    if kind == "dinov3_vit":
        mlp, activation = number("intermediate_size"), config.get("hidden_act", "gelu")
    else:
        mlp = width * number("mlp_ratio", 4)
        # Two thirds, rounded up to a multiple of 8.
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8 if gated else int(mlp)
        activation = "silu" if gated else config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise InputError(f"{folder / 'config.json'}: hidden_act {activation!r:.80} is none of {', '.join(ACTIVATIONS)}")
    return DinoSizes(
        hidden_size=width,
        depth=number("num_hidden_layers"),
        num_heads=number("num_attention_heads"),
        mlp_size=mlp,
        patch_size=patch,
        registers=0 if kind == "dinov2" else number("num_register_tokens", 4 if kind == "dinov2_with_registers" else 0),
        positions=0 if kind == "dinov3_vit" else number("image_size") // patch,
        antialias=kind == "dinov2_with_registers",
        gated=gated,
        activation=activation,
        eps=number("layer_norm_eps", 1e-5 if kind == "dinov3_vit" else 1e-6),
        rope_base=number("rope_theta", 100.0),
    )


def _sizes_of_file(path: pathlib.Path, arrays: Mapping[str, Any]) -> DinoSizes:
    """Of facebook's, by the arrays' shapes."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.ls1.gamma")
    if missing := [name for name in needed if name not in arrays]:
        raise InputError(
            f"{path}: has no {missing[0]}, so it is no DINOv2 of facebook's; a DINOv3 is taken as transformers saves it"
        )
    gated = "blocks.0.mlp.w12.weight" in arrays
    registers = next((arrays[name].shape[1] for name in ("register_tokens", "reg_token") if name in arrays), 0)
    width = arrays["cls_token"].shape[-1]
    mlp = arrays["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1]
    return DinoSizes(
        hidden_size=width,
        depth=len([name for name in arrays if re.fullmatch(r"blocks\.\d+\.ls1\.gamma", name)]),
        num_heads=max(width // _HEAD, 1),
        mlp_size=mlp,
        patch_size=arrays["patch_embed.proj.weight"].shape[-1],
        registers=registers,
        positions=math.isqrt(arrays["pos_embed"].shape[1]),
        antialias=registers > 0,
        gated=gated,
        activation="silu" if gated else "gelu",
    )
