"""PixArt's and DiT's own checkpoints, which share their names but for what a PixArt has instead of classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pixart_jax.conversion.describe import (
    captioned_model,
    class_conditional_model,
    count_blocks,
    hinted_base,
    told_heads,
    told_positions,
)
from pixart_jax.conversion.formats.base import Format, Hints, ModelWeights, Source, convert_source
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.names.pixart import convert_pixart, position_table
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.errors import InputError

NULL_NAME = "y_embedder.y_embedding"


def _shape(source: Source, name: str, axes: int) -> tuple[int, ...]:
    shape = source.shapes.get(name, ())
    if len(shape) != axes:
        raise InputError(f"{source.path} is no whole {source.format.name} checkpoint: {name} is missing or misshapen")
    return shape


def _shared_fields(source: Source, hints: Hints, fallback: Hints) -> dict[str, Any]:
    """Fields of PixArt that both kinds of checkpoint tell."""
    shapes = source.shapes
    hidden, channels, patch, _ = _shape(source, "x_embedder.proj.weight", 4)
    depth = count_blocks(shapes, "blocks")
    ratios = [math.isqrt(math.prod(shapes.get(f"blocks.{i}.attn.sr.weight", (1, 1))[1:])) for i in range(depth)]
    return {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": told_heads(source, hidden, hints, fallback),
        "mlp_ratio": _shape(source, "blocks.0.mlp.fc1.weight", 2)[0] / hidden,
        "patch_size": patch,
        "latent_channels": channels,
        "micro_condition": "csize_embedder.mlp.0.weight" in shapes,
        "kv_compress": tuple(ratios) if max(ratios, default=1) > 1 else (),
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "learn_sigma": _shape(source, "final_layer.linear.weight", 2)[0] == 2 * patch * patch * channels,
    }


def _positions(source: Source, hints: Hints, fallback: Hints, patch: int) -> tuple[int, float]:
    base, scale = hinted_base(hints, patch), hints.position_scale
    if "pos_embed" in source.shapes:
        base = base or math.isqrt(_shape(source, "pos_embed", 3)[1])
        scale = scale or read_position_scale(source.arrays["pos_embed"], str(source.path))
    return told_positions(source, base or hinted_base(fallback, patch), scale or fallback.position_scale)


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


def _describe_pixart(source: Source, hints: Hints, fallback: Hints) -> StoredModel:
    fields = _shared_fields(source, hints, fallback)
    fields["text_dim"] = _shape(source, "y_embedder.y_proj.fc1.weight", 2)[1]
    if NULL_NAME in source.shapes:
        fields["max_text_tokens"] = _shape(source, NULL_NAME, 2)[0]
    positions = _positions(source, hints, fallback, fields["patch_size"])
    return captioned_model(source, hints, fallback, fields, positions, NULL_NAME)


def _load_pixart(source: Source, hints: Hints, fallback: Hints) -> ModelWeights:
    stored = _describe_pixart(source, hints, fallback)

    def convert(expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        if stored.null_text == "missing":
            expected = {path: shape for path, shape in expected.items() if path != NULL_TEXT}
        return convert_pixart(source.arrays, stored.model.segments(), expected)

    return convert_source(source, stored, convert)


def _describe_dit(source: Source, hints: Hints, fallback: Hints) -> StoredModel:
    fields = _shared_fields(source, hints, fallback)
    num_classes = _shape(source, "y_embedder.embedding_table.weight", 2)[0] - 1
    fields |= {"num_classes": num_classes, "adaln": "full"}
    return class_conditional_model(source, fields, _positions(source, hints, fallback, fields["patch_size"]))


def _load_dit(source: Source, hints: Hints, fallback: Hints) -> ModelWeights:
    stored = _describe_dit(source, hints, fallback)
    return convert_source(
        source, stored, lambda expected: convert_pixart(source.arrays, stored.model.segments(), expected)
    )


PIXART = Format(
    name="pixart",
    title="a PixArt checkpoint",
    describe=_describe_pixart,
    load=_load_pixart,
    array=r"t_block\.1\.weight",
)
DIT = Format(
    name="dit",
    title="a DiT checkpoint",
    describe=_describe_dit,
    load=_load_dit,
    array=r"y_embedder\.embedding_table\.weight",
    may_be_dit=True,
)
