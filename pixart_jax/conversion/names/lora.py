"""What adapters' files call their arrays: by diffusers' name of the layer, in one of several styles. numpy only.

Sources: PEFT's `save_pretrained`; diffusers' `save_lora_adapter` and `save_lora_weights`, today's and those of before
PEFT; kohya's sd-scripts and OneTrainer; both PixArt repositories' second copy, with "unet." before PEFT's prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pixart_jax.adapters.layers import BLOCK_NAMES, BLOCKS, NAMES
from pixart_jax.errors import InputError

# What is in PEFT's folder. Of the files of weights the first that is there counts; the third is what the reference's
# scripts write as a second copy.
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = (
    "adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin",
)  # fmt: skip

# What an array is: A and B of s·B·A, DoRA's magnitudes, and the alpha of s.
A, B, MAGNITUDE, ALPHA = "A", "B", "magnitude", "alpha"

PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
_PREFIX = r"((unet|transformer|diffusion_model)\.)?(base_model\.model\.)?"
# PEFT's checkpoints of a training name the adapter too.
_ADAPTER = r"(\.default)?"
_KINDS = {
    rf"lora_A{_ADAPTER}\.weight|(lora_|lora\.)down\.weight": A,
    rf"lora_B{_ADAPTER}\.weight|(lora_|lora\.)up\.weight": B,
    rf"lora_magnitude_vector{_ADAPTER}(\.weight)?|dora_scale": MAGNITUDE,
    r"(lora\.)?alpha": ALPHA,
}
# Of attention in diffusers before PEFT: attn1.processor.to_q_lora.down.weight.
_PROCESSOR = re.compile(r"(?P<attention>.+?)(\.processor)?\.(?P<layer>to_q|to_k|to_v|to_out)_lora\.(?P<rest>.+)")
_FLAT = re.compile(r"lora_(unet|transformer)_(?P<layer>\w+)\.(?P<rest>.+)")
# Underscores for dots cannot be undone without knowing the names.
_UNFLATTENED = {name.replace(".", "_"): name for name in (*NAMES, *BLOCK_NAMES)}
_FLAT_BLOCK = re.compile(rf"{BLOCKS}_(\d+)_(.+)")


def parse_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Each array's layer, by diffusers' name, and what of it the array is.

    Raises:
      InputError: lists every name that is none of a PixArt's linear layers, or two names of one array.
    """
    parsed: dict[str, tuple[str, str]] = {}
    taken: dict[tuple[str, str], str] = {}
    unknown = []
    for name in names:
        found = _parse(name)
        if found is None:
            unknown.append(name)
        elif found in taken:
            raise InputError(f"{taken[found]} and {name} are the same array of {found[0]}; save one adapter alone")
        else:
            parsed[name], taken[found] = found, name
    if unknown:
        raise InputError(
            "these arrays belong to no linear layer of a PixArt, or are of another kind of adapter than LoRA and "
            "DoRA:\n  " + "\n  ".join(sorted(unknown))
        )
    return parsed


def _parse(name: str) -> tuple[str, str] | None:
    if flat := _FLAT.fullmatch(name):
        layer, rest = _unflatten(flat["layer"]), flat["rest"]
        return _known(layer, rest) if layer else None
    name = re.sub(f"^{_PREFIX}", "", name)
    if old := _PROCESSOR.fullmatch(name):
        layer = f"{old['attention']}.{'to_out.0' if old['layer'] == 'to_out' else old['layer']}"
        return _known(layer, f"lora.{old['rest']}")
    for pattern in _KINDS:
        if found := re.fullmatch(rf"(?P<layer>.+?)\.(?P<rest>{pattern})", name):
            return _known(found["layer"], found["rest"])
    return None


def _unflatten(flat: str) -> str | None:
    if block := _FLAT_BLOCK.fullmatch(flat):
        layer = _UNFLATTENED.get(block[2])
        return layer and f"{BLOCKS}.{block[1]}.{layer}"
    return _UNFLATTENED.get(flat)


def _known(layer: str, rest: str) -> tuple[str, str] | None:
    kind = next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, rest)), None)
    block = re.fullmatch(rf"{BLOCKS}\.(\d+)\.(.+)", layer)
    is_layer = block[2] in BLOCK_NAMES if block else layer in NAMES
    return (layer, kind) if kind and is_layer else None
