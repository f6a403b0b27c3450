"""The CLIP that a transformers config.json describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.models.clip import ACTIVATIONS, Clip, TextSizes, VisionSizes

# What a file means that leaves a field out, as transformers does where it has its default.
_BOTH = {"projection_dim": 512, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vision": _BOTH
    | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}
    | {"num_channels": 3},
    "text": _BOTH
    | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408}
    | {"max_position_embeddings": 77, "eos_token_id": 49407},
}
# model_type: the towers that a checkpoint of it holds.
MODEL_TYPES = {"clip": ("vision", "text"), "clip_vision_model": ("vision",), "clip_text_model": ("text",)}

# Far beyond every CLIP there is.
_MAX_LAYERS, _MAX_SIZE = 1 << 10, 1 << 20


def clip_from_config(config: Mapping[str, Any], *, path: str | os.PathLike = "config.json") -> Clip:
    """The network of a CLIPModel, CLIPVisionModelWithProjection or CLIPTextModelWithProjection.

    Args:
      config: the parsed file.
      path: of the file, for messages.

    Raises:
      InputError: it is another model's, or its sizes make no sense; lists all that is wrong.
    """
    towers = MODEL_TYPES.get(str(config.get("model_type")))
    if towers is None:
        raise InputError(
            f"{path}: model_type is {config.get('model_type')!r}, not one of {', '.join(MODEL_TYPES)}; give the folder "
            "of a CLIP"
        )
    whole = len(towers) > 1
    problems: list[str] = []
    fields = {}
    for tower in towers:
        key = f"{tower}_config"
        given = [config.get(key), config.get(f"{key}_dict")] if whole else [config, None]
        if not all(part is None or isinstance(part, Mapping) for part in given):
            raise InputError(f"{path}: {key} is no object of fields; give the folder of a CLIP")
        fields[tower] = _DEFAULTS[tower] | _present(given[0])
        if given[1] is not None:
            # As transformers has it: of old files' second object the defaults count, too.
            fields[tower] |= _DEFAULTS[tower] | _present(given[1])
        problems += _problems(fields[tower], _DEFAULTS[tower], f"{key}." if whole else "")
    projection_dim = config.get("projection_dim", 512) if whole else fields[towers[0]]["projection_dim"]
    if not _positive(projection_dim):
        problems.append(f"projection_dim is {projection_dim!r}, not a positive integer up to {_MAX_SIZE}")
    if problems:
        raise InputError(
            f"{path}: not the config of a CLIP; give that of the checkpoint's own folder\n  "
            + "\n  ".join(dict.fromkeys(problems))
        )
    vision = text = None
    if "vision" in fields:
        vision = VisionSizes(**_without(fields["vision"], "projection_dim", "num_channels"))
    if "text" in fields:
        text = TextSizes(**_without(fields["text"], "projection_dim"))
    return Clip(vision, text, projection_dim)


def _present(given: Mapping[str, Any] | None) -> dict[str, Any]:
    known = _DEFAULTS["vision"].keys() | _DEFAULTS["text"].keys()
    return {name: value for name, value in (given or {}).items() if name in known}


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _problems(fields: dict[str, Any], defaults: Mapping[str, Any], prefix: str) -> list[str]:
    """What is wrong with a tower's fields, of which those that are no field of it are taken out."""
    for name in fields.keys() - defaults.keys():
        del fields[name]
    problems = []
    for name, value in fields.items():
        if name == "hidden_act":
            if value not in ACTIVATIONS:
                problems.append(f"{prefix}{name} is {value!r}, not one of {', '.join(ACTIVATIONS)}")
        elif name == "layer_norm_eps":
            if not (isinstance(value, float) and 0 < value < 1):
                problems.append(f"{prefix}{name} is {value!r}, not a positive number below 1")
        elif not _positive(value):
            problems.append(f"{prefix}{name} is {value!r}, not a positive integer up to {_MAX_SIZE}")
    if problems:
        return problems
    if fields["num_hidden_layers"] > _MAX_LAYERS:
        problems.append(f"{prefix}num_hidden_layers is {fields['num_hidden_layers']}, more than {_MAX_LAYERS}")
    if fields["hidden_size"] % fields["num_attention_heads"]:
        problems.append(
            f"{prefix}hidden_size is {fields['hidden_size']}, not a multiple of num_attention_heads, "
            f"{fields['num_attention_heads']}"
        )
    if fields.get("num_channels", 3) != 3:
        problems.append(f"{prefix}num_channels is {fields['num_channels']}, pictures have 3")
    if fields.get("patch_size", 1) > fields.get("image_size", 1):
        problems.append(f"{prefix}patch_size is {fields['patch_size']}, more than image_size, {fields['image_size']}")
    return problems


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE
