"""Which model weights belong to, and how it is to be used: told from shapes, configurations, and what the user adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from pixart_jax.conversion.names.diffusers import DEFAULT_FIELDS, FIXED_FIELDS, NULL_NAME
from pixart_jax.conversion.names.pixart import position_table
from pixart_jax.conversion.sources import Source
from pixart_jax.conversion.stored import StoredModel, read_stored_model
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


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the user says; goes before what a file says. None says nothing.

    Attributes:
      family: a key of FAMILIES.
      num_heads: attention heads, which a PyTorch checkpoint does not tell.
      resolution: pixels along one side of the resolution's square.
      position_scale: see `tokens.grid_positions`.
    """

    family: str | None = None
    num_heads: int | None = None
    resolution: int | None = None
    position_scale: float | None = None


NO_HINTS = Hints()


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
    if source.kind == "orbax":
        if hints != NO_HINTS:
            raise InputError(f"{source.path} says all about its model in model.json; leave the options out")
        return read_stored_model(source.path)
    if source.kind == "controlnet":
        raise InputError(
            f"{source.path} holds a PixArt together with a ControlNet; conversion.controlnet.split_controlnet takes "
            "them apart, and the PixArt can be described"
        )
    if source.kind == "diffusers":
        fields, base, scale = _from_diffusers(source, hints, fallback)
    else:
        fields, base, scale = _from_reference(source, hints, fallback)
    unit = 12 if fields.get("micro_condition") else 4
    if fields["hidden_size"] % unit:
        raise InputError(
            f"{source.path}: a hidden size of {fields['hidden_size']} is no multiple of {unit}, which the position "
            "table and the micro-conditions split it into"
        )
    provenance = {"source": source.path.name, "format": source.kind, "weights": source.weights}
    conventions: Conventions
    if source.kind == "dit":
        conventions, null_text = DIT, "none"
    else:
        name = _family(source, hints, fields["micro_condition"], fields.get("max_text_tokens"))
        if name is None and fallback.family:
            name = provenance["assumed_family"] = fallback.family
        if name is None:
            raise InputError(
                f"{source.path}: nothing in it tells whether this is a PixArt-α or a PixArt-Σ, which differ in the "
                "latent scale and the length of captions; pass --family alpha or --family sigma"
            )
        conventions = FAMILIES[name]
        fields = {"max_text_tokens": FAMILIES[name]["max_text_tokens"]} | fields
        null_names = {"y_embedder.y_embedding", NULL_NAME}
        null_text = "stored" if null_names & source.shapes.keys() else "missing"
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


def _family(source: Source, hints: Hints, micro_condition: bool, max_text_tokens: int | None) -> str | None:
    told = hints.family or source.pipeline.get("family") or ("alpha" if micro_condition else None)
    return told or next((name for name, f in FAMILIES.items() if f["max_text_tokens"] == max_text_tokens), None)


def _from_reference(source: Source, hints: Hints, fallback: Hints) -> tuple[dict[str, Any], int, float]:
    """Fields of PixArt, position base and position scale from a PixArt's or a DiT's own checkpoint."""
    shapes = source.shapes

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if len(shapes.get(name, ())) != axes:
            raise InputError(f"{source.path} is no whole {source.kind} checkpoint: {name} is missing or misshapen")
        return shapes[name]

    hidden, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    depth = _depth(shapes, "blocks")
    ratios = [math.isqrt(math.prod(shapes.get(f"blocks.{i}.attn.sr.weight", (1, 1))[1:])) for i in range(depth)]
    fields = {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": _num_heads(source, hidden, hints, fallback),
        "mlp_ratio": shape("blocks.0.mlp.fc1.weight", 2)[0] / hidden,
        "patch_size": patch,
        "latent_channels": channels,
        "micro_condition": "csize_embedder.mlp.0.weight" in shapes,
        "kv_compress": tuple(ratios) if max(ratios, default=1) > 1 else (),
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "learn_sigma": shape("final_layer.linear.weight", 2)[0] == 2 * patch * patch * channels,
    }
    if source.kind == "dit":
        fields |= {
            "num_classes": shape("y_embedder.embedding_table.weight", 2)[0] - 1,
            "adaln": "full",
        }
    else:
        fields["text_dim"] = shape("y_embedder.y_proj.fc1.weight", 2)[1]
        if "y_embedder.y_embedding" in shapes:
            fields["max_text_tokens"] = shape("y_embedder.y_embedding", 2)[0]
    base, scale = _base(hints, patch), hints.position_scale
    if "pos_embed" in shapes:
        base = base or math.isqrt(shape("pos_embed", 3)[1])
        scale = scale or read_position_scale(source.arrays["pos_embed"], str(source.path))
    return fields, *_told(source, base or _base(fallback, patch), scale or fallback.position_scale)


def _from_diffusers(source: Source, hints: Hints, fallback: Hints) -> tuple[dict[str, Any], int, float]:
    """Fields of PixArt, position base and position scale from diffusers' config.json, or without it from the shapes."""
    given = _config_of_shapes(source, hints, fallback) if source.config is None else source.config
    name = given.get("_class_name", "PixArtTransformer2DModel")
    # Released configurations carry the name of the class that once held every transformer.
    if name not in ("PixArtTransformer2DModel", "Transformer2DModel"):
        raise InputError(f"{source.path} is a {name}, not a PixArtTransformer2DModel")
    config = FIXED_FIELDS | DEFAULT_FIELDS | given
    counts = ["num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "patch_size"]
    counts += [] if source.config is None else ["sample_size"]
    counts += [key for key in ("caption_channels", "out_channels") if config[key] is not None]
    if wrong := [f"{key} = {config[key]!r}" for key in counts if not isinstance(config[key], int) or config[key] < 1]:
        raise InputError(f"{source.path}/config.json: {'; '.join(wrong)}: must be a whole number, at least 1")
    scale = config["interpolation_scale"]
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise InputError(f"{source.path}/config.json: interpolation_scale = {scale!r} must be a positive number")
    patch = config["patch_size"]
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    fixed = FIXED_FIELDS | {"cross_attention_dim": hidden}
    odd = [f"{key} = {config[key]!r}, must be {value!r}" for key, value in fixed.items() if config[key] != value]
    if config["caption_channels"] is None:
        odd.append("caption_channels is missing")
    if odd:
        raise InputError(f"{source.path}/config.json is of another model than PixArt: {'; '.join(odd)}")
    sample_size = config["sample_size"]
    micro_condition = config["use_additional_conditions"]
    fields = {
        "hidden_size": hidden,
        "depth": config["num_layers"],
        "num_heads": hints.num_heads or config["num_attention_heads"],
        "patch_size": patch,
        "latent_channels": config["in_channels"],
        "text_dim": config["caption_channels"],
        # What diffusers falls back to.
        "micro_condition": sample_size == 128 if micro_condition is None else micro_condition,
        "learn_sigma": config["out_channels"] not in (None, config["in_channels"]),
    }
    if len(null_shape := source.shapes.get(NULL_NAME, ())) == 2:
        fields["max_text_tokens"] = null_shape[0]
    if scale is None and sample_size is not None:
        scale = max(sample_size // 64, 1)
    base = _base(hints, patch) or (sample_size // patch if sample_size else None)
    scale = hints.position_scale or scale or fallback.position_scale
    return fields, *_told(source, base or _base(fallback, patch), scale)


def _config_of_shapes(source: Source, hints: Hints, fallback: Hints) -> dict[str, Any]:
    """As much of a config.json as the shapes in a lone file tell."""
    shapes = source.shapes
    try:
        hidden, channels, patch, _ = shapes["pos_embed.proj.weight"]
        out_channels = shapes["proj_out.weight"][0] // patch**2
        text_dim = shapes["caption_projection.linear_1.weight"][1]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{source.path} is no whole PixArtTransformer2DModel: {error} is missing or misshapen"
        ) from error
    heads = _num_heads(source, hidden, hints, fallback)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "num_layers": _depth(shapes, "transformer_blocks"),
        "in_channels": channels,
        "out_channels": out_channels,
        "patch_size": patch,
        "caption_channels": text_dim,
        "cross_attention_dim": hidden,
        "use_additional_conditions": "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
        "sample_size": None,
    }


def _depth(shapes: Mapping[str, Any], prefix: str) -> int:
    # A gap in the middle is found when the weights are converted.
    indices = (name.split(".")[1] for name in shapes if name.startswith(f"{prefix}."))
    return max((int(index) for index in indices if index.isdigit()), default=-1) + 1


def _num_heads(source: Source, hidden: int, hints: Hints, fallback: Hints) -> int:
    known = {size["hidden_size"]: size["num_heads"] for size in SIZES.values()}
    heads = hints.num_heads or known.get(hidden) or fallback.num_heads
    if heads is None:
        raise InputError(
            f"{source.path}: the file does not tell the number of attention heads, and no known model has a hidden "
            f"size of {hidden}; pass --num-heads"
        )
    if hidden % heads:
        raise InputError(f"{source.path}: a hidden size of {hidden} cannot be split between {heads} heads")
    return heads


def _base(hints: Hints, patch: int) -> int | None:
    if hints.resolution is None:
        return None
    if hints.resolution <= 0 or hints.resolution % (DOWNSAMPLE * patch):
        raise InputError(f"--resolution {hints.resolution} must be a multiple of {DOWNSAMPLE * patch} pixels")
    return hints.resolution // (DOWNSAMPLE * patch)


def _told(source: Source, base: int | None, scale: float | None) -> tuple[int, float]:
    if not base or not scale:
        raise InputError(
            f"{source.path}: nothing in it tells the resolution or the scale of positions; pass --resolution and "
            "--position-scale (α: 256 and 1, 512 and 1, 1024 and 2; Σ: 256 and 0.5, 512 and 1, 1024 and 2, 2048 and 4)"
        )
    return base, float(scale)


def read_position_scale(table: np.ndarray, where: str) -> float:
    """The position scale that a reference's `pos_embed` [1, base², D] was made with.

    Token (0, 1) of the table begins with sin(1/scale) and, a quarter of the channels on, cos(1/scale). The whole table
    is then made again, because a table of another kind would be lost: the model computes its own.

    Raises:
      InputError: it is no such table, or of one token; begins with `where`.
    """
    _, count, hidden = table.shape
    base = math.isqrt(count)
    angle = math.atan2(table[0, 1, 0], table[0, 1, hidden // 4]) if count > 1 else 0.0
    # Scales are short numbers; the table holds 1/scale to seven digits.
    scale = float(f"{1 / angle:.5g}") if angle > 0 else 1.0
    if base * base != count or np.abs(position_table(base, scale, hidden) - table).max() > 1e-5 or count == 1:
        raise InputError(
            f"{where}: pos_embed is not a sin-cos table of a square of tokens at any scale above 0.32, the only kind "
            "the model computes; to use such a table instead, pass --position-scale and --resolution"
        )
    return scale
