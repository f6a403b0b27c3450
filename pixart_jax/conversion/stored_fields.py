"""The types and ranges of what model.json says: far beyond every model there is, and far below what a machine holds."""

from __future__ import annotations

from typing import Any

from pixart_jax.diffusion.predictions import PREDICTIONS
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import Fields
from pixart_jax.models.layers import KV_SAMPLINGS
from pixart_jax.samplers import SAMPLERS
from pixart_jax.samplers.program import GUIDANCES

# What the fields that name one of a few things may name.
CHOICES = {
    "null_text": ("stored", "missing", "none"),
    "caption_cleaning": ("alpha", "sigma", "none"),
    "sampler": SAMPLERS,
    "guidance": GUIDANCES,
    "prediction": PREDICTIONS,
}
# The most of each.
COUNTS = {
    "hidden_size": 1 << 16,
    "depth": 1 << 10,
    "num_heads": 1 << 12,
    "patch_size": 64,
    "latent_channels": 1 << 10,
    "text_dim": 1 << 16,
    "max_text_tokens": 1 << 16,
}
MAX_POSITION_BASE = 1 << 12
# Of scales and of what a hidden size is multiplied by.
SMALLEST, LARGEST = 1e-4, 1e4
_MAX_CLASSES, _MAX_COMPRESSION, _MAX_STEPS = 1 << 24, 64, 1000
_ADALN = ("single", "full")


def check_stored_fields(fields: Fields) -> None:
    """Raises InputError, with the file, the field and the cure, unless each is of its type and in its range."""
    fields.integer("position_base", 1, MAX_POSITION_BASE)
    for key in ("position_scale", "latent_scale", "flow_shift"):
        fields.number(key, SMALLEST, LARGEST)
    fields.integer("num_steps", 1, _MAX_STEPS)
    for key in CHOICES:
        fields.text(key)
    provenance = fields.fields("provenance")
    for key in provenance:
        provenance.text(key)
    depth = _check_model(fields.fields("model"))
    if fields["path_drop"] is not None:
        blocks = fields.sequence("path_drop", int)
        if len(blocks) != 2 or not 0 <= blocks[0] <= blocks[1] < depth:
            raise fields.error("path_drop", f"the first and the last of some of the {depth} blocks, counted from 0")


def _check_model(model: Fields) -> int:
    """Returns the number of blocks."""
    numbers: dict[str, Any] = {key: model.integer(key, 1, most) for key, most in COUNTS.items()}
    numbers["num_classes"] = model.integer("num_classes", 0, _MAX_CLASSES)
    model.number("mlp_ratio", SMALLEST, LARGEST)
    for key in ("micro_condition", "qk_norm", "learn_sigma"):
        model.flag(key)
    model.text("adaln", choices=_ADALN)
    model.text("kv_sampling", choices=KV_SAMPLINGS)
    ratios = model.sequence("kv_compress", int)
    if any(not 1 <= ratio <= _MAX_COMPRESSION for ratio in ratios) or len(ratios) not in (0, numbers["depth"]):
        raise model.error("kv_compress", f"empty, or for each block a ratio from 1 to {_MAX_COMPRESSION}")
    if numbers["hidden_size"] % numbers["num_heads"]:
        raise InputError(
            f"{model.path}: model.hidden_size = {numbers['hidden_size']} cannot be split between model.num_heads = "
            f"{numbers['num_heads']}; {model.cure}"
        )
    return int(numbers["depth"])
