"""PixArt's and DiT's own checkpoints, which share their names but for what a PixArt has instead of classes."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
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
    ratios = tuple(math.isqrt(math.prod(shapes.get(f"blocks.{i}.attn.sr.weight", (1, 1))[1:])) for i in range(depth))
    ratios, sampling = _compression(source, ratios if max(ratios, default=1) > 1 else (), depth, hints)
    return {
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": told_heads(source, hidden, hints, fallback),
        "mlp_ratio": _shape(source, "blocks.0.mlp.fc1.weight", 2)[0] / hidden,
        "patch_size": patch,
        "latent_channels": channels,
        "micro_condition": "csize_embedder.mlp.0.weight" in shapes,
        "kv_compress": ratios,
        "kv_sampling": sampling,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "learn_sigma": _shape(source, "final_layer.linear.weight", 2)[0] == 2 * patch * patch * channels,
    }


def _compression(source: Source, found: tuple[int, ...], depth: int, hints: Hints) -> tuple[tuple[int, ...], str]:
    """Key/value compression of each block, and how: by a convolution, which is in the file, or as the hints say."""
    if hints.kv_sampling is None:
        if hints.kv_ratio is not None or hints.kv_from is not None:
            raise InputError(
                f"{source.path}: --kv-ratio and --kv-from are of a compression that is not in the file; pass "
                "--kv-sampling too, as the training's config says: ave, uniform or uniform_every"
            )
        return found, "conv"
    if bool(found) != (hints.kv_sampling == "conv"):
        there = "has" if found else "has no"
        raise InputError(
            f"{source.path} {there} weights of a convolution that compresses keys and values (attn.sr), which "
            f"contradicts --kv-sampling {hints.kv_sampling}; see the training's config"
        )
    if found:
        return found, "conv"
    ratio = 2 if hints.kv_ratio is None else hints.kv_ratio
    first = depth // 2 if hints.kv_from is None else hints.kv_from
    if ratio < 2 or not 0 <= first < depth:
        raise InputError(f"--kv-ratio {ratio} --kv-from {first}: a ratio of at least 2, from one of {depth} blocks on")
    return tuple(ratio if block >= first else 1 for block in range(depth)), hints.kv_sampling


def _positions(source: Source, hints: Hints, fallback: Hints, patch: int) -> tuple[int, float]:
    base, scale = hinted_base(hints, patch), hints.position_scale
    if "pos_embed" in source.shapes and not (base and scale):
        stored_base = math.isqrt(_shape(source, "pos_embed", 3)[1])
        scale = read_position_scale(source.arrays["pos_embed"], str(source.path)) if scale is None else scale
        base = base or stored_base
        if source.format is PIXART and not (_is_known(stored_base, scale) and _is_known(base, scale)):
            # A run that starts from the file computes positions of its own, and has no such options.
            if fallback.resolution is None or fallback.position_scale is None:
                raise _unknown_table(source, stored_base, scale)
            base, scale = hinted_base(fallback, patch), fallback.position_scale
    return told_positions(source, base or hinted_base(fallback, patch), scale or fallback.position_scale)


def _is_known(base: int, scale: float) -> bool:
    """Whether a PixArt was trained so, or is of a size that only somebody's own has."""
    # α's 256 px are the exception: it was not trained with positions half as far apart, Σ was.
    return base < _SMALLEST_BASE or scale == base / 32 or (base, scale) == (16, 1.0)


def _unknown_table(source: Source, base: int, scale: float) -> InputError:
    """For a table that no PixArt was trained with: some trainers save the same one whatever the resolution."""
    return InputError(
        f"{source.path}: pos_embed is a table of {base}×{base} tokens, which at scale {scale:g} and as the options say "
        "no PixArt was trained with, and which some trainers write whatever the resolution; pass --resolution and "
        "--position-scale (α: 256 and 1, 512 and 1, 1024 and 2; Σ: 256 and 0.5, 512 and 1, 768 and 1.5, 1024 and 2, "
        "2048 and 4)"
    )


# Of the lowest resolution of the known models; what is smaller is somebody's own.
_SMALLEST_BASE = 16


def read_position_scale(table: np.ndarray, where: str) -> float:
    """The position scale that a reference's `pos_embed` [1, base², D] was made with.

    Token (0, 1) of the table begins with sin(1/scale) and, a quarter of the channels on, cos(1/scale). The whole table
    is then made again, because a table of another kind would be lost: the model computes its own. One that has been
    through half precision is compared as exactly as that can tell, also if it is float32 again.

    Raises:
      InputError: it is no such table, or of one token; begins with `where`.
    """
    _, count, hidden = table.shape
    base = math.isqrt(count)
    halves = [dtype for dtype in (ml_dtypes.bfloat16, np.float16) if np.array_equal(table.astype(dtype), table)]
    # Half a unit in the last place of values up to 1.
    tolerance = float(ml_dtypes.finfo(halves[0]).eps) / 2 if halves and count > 1 else 1e-5
    table = table.astype(np.float32)
    angle = math.atan2(table[0, 1, 0], table[0, 1, hidden // 4]) if count > 1 else 0.0
    if base * base == count > 1:
        # Scales are short numbers, and the table holds 1/scale to a few digits: the shortest that makes it.
        for digits in range(1, 6):
            scale = float(f"{1 / angle:.{digits}g}") if angle > 0 else 1.0
            if np.abs(position_table(base, scale, hidden) - table).max() <= tolerance:
                return scale
    raise InputError(
        f"{where}: pos_embed is not a sin-cos table of a square of tokens at any scale above 0.32, the only kind "
        "the model computes; to use such a table instead, pass --position-scale and --resolution"
    )


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
