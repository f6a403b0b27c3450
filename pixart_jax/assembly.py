"""What a config says about the data, as the typed arguments that the input pipeline takes."""

from __future__ import annotations

from pixart_jax.config import ConfigDict, build_model, position_base
from pixart_jax.data.pipeline import BatchSpec
from pixart_jax.errors import InputError


def parse_sources(text: str) -> list[tuple[str, float]]:
    """ "DIR" or "DIR:WEIGHT,DIR:WEIGHT" as (directory, weight) pairs."""
    sources = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        directory, _, weight = part.rpartition(":")
        try:
            sources.append((directory, float(weight)) if directory else (part, 1.0))
        except ValueError:
            sources.append((part, 1.0))  # The colon belongs to the path.
    if not sources:
        raise InputError("config.data.sources is empty: name a directory of feature shards, e.g. data/quickstart")
    return sources


def batch_spec(config: ConfigDict, process_count: int = 1) -> BatchSpec:
    """The shapes of this process's part of a batch."""
    model = build_model(config)
    base = position_base(config)
    return BatchSpec(
        batch_size=config.data.batch_size // process_count,
        num_tokens=base**2,
        patch_size=model.patch_size,
        latent_channels=model.latent_channels,
        position_base=base,
        position_scale=config.model.position_scale,
        max_text_tokens=model.max_text_tokens,
        text_dim=model.text_dim,
        text_dtype="float32" if config.dtype == "float32" else "bfloat16",
        num_classes=model.num_classes,
        block_ratio=config.model.kv_compress_ratio,
        text_drop_prob=config.data.text_drop_prob,
        group_buckets=config.data.group_buckets,
    )
