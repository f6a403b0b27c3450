"""Which model weights belong to, and how it is to be used: told from shapes, configurations, and what the user adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from pixart_jax.conversion.formats.base import NO_HINTS, Hints, Source
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.errors import InputError
from pixart_jax.models.pixart import SIZES, PixArt
from pixart_jax.tokens import DOWNSAMPLE


class Conventions(TypedDict):
    """What no transformer's file tells: the fields of StoredModel of these names."""

    latent_scale: float
    caption_cleaning: str
    sampler: str


class Family(Conventions):
    """Likewise, and the tokens of a caption, which diffusers' files do not tell."""

    max_text_tokens: int


# What α and Σ differ in.
FAMILIES: dict[str, Family] = {
    "alpha": {
        "latent_scale": 0.18215,
        "max_text_tokens": 120,
        "caption_cleaning": "alpha",
        "sampler": "dpm-solver-alpha",
    },
    "sigma": {"latent_scale": 0.13025, "max_text_tokens": 300, "caption_cleaning": "sigma", "sampler": "dpm-solver"},
}
# The scale is that of the autoencoder that DiT was trained with, which α took over.
DIT: Conventions = {"latent_scale": 0.18215, "caption_cleaning": "none", "sampler": "iddpm"}


def describe(source: Source, hints: Hints = NO_HINTS, fallback: Hints = NO_HINTS) -> StoredModel:
    """The model that opened weights belong to.

    PyTorch checkpoints tell all of it but the number of heads, which goes by the hidden size (SIZES), and the latent
    scale, which goes by the family: micro-conditions and 120 tokens of caption mean α, 300 mean Σ.

    Args:
      hints: what goes before what the files tell.
      fallback: what to take where neither the hints nor the files tell it. A family that had to be taken from there is
        `assumed_family` in the provenance.

    Raises:
      InputError: the files do not tell something, and neither do the hints; or they contradict each other; or it is a
        ControlNet.
    """
    return source.format.describe(source, hints, fallback)


def captioned_model(
    source: Source,
    hints: Hints,
    fallback: Hints,
    fields: dict[str, Any],
    positions: tuple[int, float],
    null_name: str,
) -> StoredModel:
    """A PixArt, of whichever family hints or files tell.

    Args:
      fields: of PixArt.
      positions: base and scale; see `told_positions`.
      null_name: what the null caption is called among the source's arrays.
    """
    _check_width(source, fields)
    name = _family(source, hints, fields["micro_condition"], fields.get("max_text_tokens"))
    assumed: dict[str, str] = {}
    if name is None and fallback.family:
        name = assumed["assumed_family"] = fallback.family
    if name is None:
        raise InputError(
            f"{source.path}: nothing in it tells whether this is a PixArt-α or a PixArt-Σ, which differ in the "
            "latent scale and the length of captions; pass --family alpha or --family sigma"
        )
    family = FAMILIES[name]
    fields = {"max_text_tokens": family["max_text_tokens"]} | fields
    null_text = "stored" if null_name in source.shapes else "missing"
    return _model(source, fields, positions, family, null_text, assumed)


def class_conditional_model(source: Source, fields: Mapping[str, Any], positions: tuple[int, float]) -> StoredModel:
    """A DiT; the arguments are those of `captioned_model`."""
    _check_width(source, fields)
    return _model(source, fields, positions, DIT, "none", {})


def _check_width(source: Source, fields: Mapping[str, Any]) -> None:
    unit = 12 if fields.get("micro_condition") else 4
    if fields["hidden_size"] % unit:
        raise InputError(
            f"{source.path}: a hidden size of {fields['hidden_size']} is no multiple of {unit}, which the position "
            "table and the micro-conditions split it into"
        )


def _family(source: Source, hints: Hints, micro_condition: bool, max_text_tokens: int | None) -> str | None:
    told = hints.family or source.pipeline.get("family") or ("alpha" if micro_condition else None)
    return told or next((name for name, f in FAMILIES.items() if f["max_text_tokens"] == max_text_tokens), None)


def _model(
    source: Source,
    fields: Mapping[str, Any],
    positions: tuple[int, float],
    conventions: Conventions,
    null_text: str,
    assumed: Mapping[str, str],
) -> StoredModel:
    base, scale = positions
    provenance = {"source": source.path.name, "format": source.format.name, "weights": source.weights, **assumed}
    return StoredModel(
        model=PixArt(**fields),
        position_base=base,
        position_scale=scale,
        latent_scale=source.pipeline.get("latent_scale", conventions["latent_scale"]),
        null_text=null_text,
        caption_cleaning=conventions["caption_cleaning"],
        sampler=conventions["sampler"],
        provenance={key: value for key, value in provenance.items() if value},
    )


def count_blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    """Of names like prefix.0.rest."""
    # A gap in the middle is found when the weights are converted.
    indices = (name.split(".")[1] for name in shapes if name.startswith(f"{prefix}."))
    return max((int(index) for index in indices if index.isdigit()), default=-1) + 1


def told_heads(source: Source, hidden: int, hints: Hints, fallback: Hints) -> int:
    """Attention heads of a model so wide, where the files do not tell them."""
    known = {size["hidden_size"]: size["num_heads"] for size in SIZES.values()}
    heads = hints.num_heads or known.get(hidden) or fallback.num_heads
    if heads is None:
        raise InputError(
            f"{source.path}: the file does not tell the number of attention heads, and no known model has a hidden "
            f"size of {hidden}; pass --num-heads"
        )
    return check_heads(source, hidden, heads)


def check_heads(source: Source, hidden: int, heads: int) -> int:
    """`heads`; raises InputError if they cannot share the hidden size."""
    if hidden % heads:
        raise InputError(
            f"{source.path}: a hidden size of {hidden} cannot be split between {heads} heads; correct --num-heads, or "
            "leave it out"
        )
    return heads


def hinted_base(hints: Hints, patch: int) -> int | None:
    """The position base that the hinted resolution means."""
    if hints.resolution is None:
        return None
    if hints.resolution <= 0 or hints.resolution % (DOWNSAMPLE * patch):
        raise InputError(f"--resolution {hints.resolution} must be a multiple of {DOWNSAMPLE * patch} pixels")
    return hints.resolution // (DOWNSAMPLE * patch)


def told_positions(source: Source, base: int | None, scale: float | None) -> tuple[int, float]:
    """Position base and scale; raises InputError where one of them is told by nothing."""
    if not base or not scale:
        raise InputError(
            f"{source.path}: nothing in it tells the resolution or the scale of positions; pass --resolution and "
            "--position-scale (α: 256 and 1, 512 and 1, 1024 and 2; Σ: 256 and 0.5, 512 and 1, 1024 and 2, 2048 and 4)"
        )
    return base, float(scale)
