"""A transformer of diffusers: its folder, or a file of its arrays."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from pixart_jax.conversion.arrays import read_json
from pixart_jax.conversion.describe import (
    captioned_model,
    check_heads,
    count_blocks,
    hinted_base,
    told_heads,
    told_positions,
)
from pixart_jax.conversion.formats.base import Format, Hints, ModelWeights, Source, convert_source
from pixart_jax.conversion.names.diffusers import DEFAULT_FIELDS, FIXED_FIELDS, NULL_NAME, convert_diffusers
from pixart_jax.conversion.schedulers import check_scheduler, scheduler_drawing, scheduler_problem, scheduler_target
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.stored_fields import COUNTS, LARGEST, SMALLEST
from pixart_jax.errors import InputError

_COUNTS = {
    "num_attention_heads": 1 << 12,
    "attention_head_dim": 1 << 12,
    "num_layers": COUNTS["depth"],
    "in_channels": COUNTS["latent_channels"],
    "patch_size": COUNTS["patch_size"],
    "caption_channels": COUNTS["text_dim"],
    "out_channels": 2 * COUNTS["latent_channels"],
}
_MAX_SAMPLE_SIZE = 1 << 12


def _read_config(source: Source, hints: Hints, fallback: Hints) -> tuple[dict[str, Any], tuple[int, float]]:
    """Fields of PixArt, and position base and scale, from diffusers' config.json, or without it from the shapes."""
    if (hints.kv_sampling, hints.kv_ratio, hints.kv_from) != (None, None, None):
        raise InputError(
            f"{source.path}: diffusers' PixArt compresses no keys and values; leave --kv-sampling, --kv-ratio and "
            "--kv-from out"
        )
    given = _config_of_shapes(source, hints, fallback) if source.config is None else source.config
    name = given.get("_class_name", "PixArtTransformer2DModel")
    # Released configurations carry the name of the class that once held every transformer.
    if name not in ("PixArtTransformer2DModel", "Transformer2DModel"):
        raise InputError(f"{source.path} is a {name}, not a PixArtTransformer2DModel")
    config = FIXED_FIELDS | DEFAULT_FIELDS | given
    _check_numbers(config, source)
    scale = config["interpolation_scale"]
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
        "num_heads": check_heads(source, hidden, hints.num_heads or config["num_attention_heads"]),
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
    base = hinted_base(hints, patch) or (sample_size // patch if sample_size else None)
    scale = hints.position_scale or scale or fallback.position_scale
    return fields, told_positions(source, base or hinted_base(fallback, patch), scale)


def _check_numbers(config: dict[str, Any], source: Source) -> None:
    """Raises InputError for counts and scales of other types, or far beyond every model there is."""
    where = f"{source.path}/config.json"
    limits = dict(_COUNTS)
    if source.config is not None:
        limits["sample_size"] = _MAX_SAMPLE_SIZE
    optional = ("caption_channels", "out_channels")
    if wrong := [
        f"{key} = {config[key]!r} (to {most})"
        for key, most in limits.items()
        if not (type(config[key]) is int and 1 <= config[key] <= most) and not (key in optional and config[key] is None)
    ]:
        raise InputError(f"{where}: {'; '.join(wrong)}: must be a whole number, at least 1 and no larger than that")
    scale = config["interpolation_scale"]
    if scale is not None and not (type(scale) in (int, float) and SMALLEST <= scale <= LARGEST):
        raise InputError(f"{where}: interpolation_scale = {scale!r} must be a number from {SMALLEST} to {LARGEST}")
    if config["use_additional_conditions"] not in (None, True, False):
        raise InputError(
            f"{where}: use_additional_conditions = {config['use_additional_conditions']!r} must be true or false"
        )


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
    heads = told_heads(source, hidden, hints, fallback)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "num_layers": count_blocks(shapes, "transformer_blocks"),
        "in_channels": channels,
        "out_channels": out_channels,
        "patch_size": patch,
        "caption_channels": text_dim,
        "cross_attention_dim": hidden,
        "use_additional_conditions": "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
        "sample_size": None,
    }


def _look_beside(source: Source, file: pathlib.Path) -> Source:
    config = file.with_name("config.json")
    return dataclasses.replace(
        source, config=read_json(config) if config.exists() else None, pipeline=_read_pipeline(file.parent)
    )


def _read_pipeline(folder: pathlib.Path) -> dict[str, Any]:
    """What the pipeline that a `transformer/` folder may be part of tells of it."""
    found: dict[str, Any] = {}
    beside = ("model_index.json", "scheduler/scheduler_config.json")
    around = _pipelines_around(folder)
    pipeline = next((path for path in around if any((path / name).exists() for name in beside)), None)
    if pipeline is not None:
        index, vae = pipeline / "model_index.json", pipeline / "vae" / "config.json"
        families = {"PixArtAlphaPipeline": "alpha", "PixArtSigmaPipeline": "sigma", "PixArtSigmaPAGPipeline": "sigma"}
        if index.exists() and (family := families.get(str(read_json(index).get("_class_name")))):
            found["family"] = family
        if vae.exists() and (scale := read_json(vae).get("scaling_factor")) is not None:
            if type(scale) not in (int, float) or not SMALLEST <= scale <= LARGEST:
                raise InputError(
                    f"{vae}: scaling_factor = {scale!r} must be a positive number from {SMALLEST} to {LARGEST}"
                )
            found["latent_scale"] = float(scale)
        if problem := scheduler_problem(pipeline):
            found["scheduler_problem"] = problem
        else:
            found["drawing"] = {**(scheduler_drawing(pipeline) or {}), **scheduler_target(pipeline).stored}
    return found


def _pipelines_around(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where a `transformer/` may be part of a pipeline: as it is named, and where it really lies."""
    # Not the path's own "..", which behind a link leads elsewhere than it reads.
    named, real = pathlib.Path(os.path.abspath(folder)), folder.resolve()
    return [path.parent for path in dict.fromkeys((named, real)) if path.name == "transformer"]


def _describe(source: Source, hints: Hints, fallback: Hints) -> StoredModel:
    problem = source.pipeline.get("scheduler_problem")
    if not hints.ignore_scheduler:
        check_scheduler(source.path, problem)
    fields, positions = _read_config(source, hints, fallback)
    stored = captioned_model(source, hints, fallback, fields, positions, NULL_NAME)
    drawing = {} if hints.ignore_scheduler else source.pipeline.get("drawing", {})
    provenance = stored.provenance | ({"ignored": problem} if problem else {})
    return dataclasses.replace(stored, **drawing, provenance=provenance)


def _load(source: Source, hints: Hints, fallback: Hints) -> ModelWeights:
    stored = _describe(source, hints, fallback)
    return convert_source(
        source, stored, lambda expected: convert_diffusers(source.arrays, stored.model.segments(), expected)
    )


DIFFUSERS = Format(
    name="diffusers",
    title="a diffusers transformer",
    describe=_describe,
    load=_load,
    array=r"adaln_single\.linear\.weight",
    look_beside=_look_beside,
)
