"""What the data sets in miniature share: shards of a linear autoencoder's latents, with both encoders beside them, and
what becomes of data that are there already.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.manifest import MANIFEST_FILE, check_shards, read_manifest
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.minilm import MiniLM
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE
from pixart_jax.errors import InputError
from pixart_jax.files import errors_naming
from pixart_jax.files.locks import own_target
from pixart_jax.models.linear_autoencoder import LinearAutoencoder


def make_or_check(out: pathlib.Path, make: Callable[[], str], check: Callable[[], str]) -> str:
    """What `make` says, or where something is at `out` already, `check`.

    Raises:
      InputError: another process makes it, or it cannot be written; and what the two raise.
    """
    with errors_naming(out, "made"), contextlib.nullcontext() if out.exists() else own_target(out, "--out"):
        return check() if out.exists() else make()


def check_made(out: pathlib.Path, file: str, wanted: Mapping[str, Any], what: str, *, part: str = "") -> None:
    """Raises InputError unless data lie at `out` that were made as is wanted, and their shards are whole.

    Args:
      file: the record below `out`, a JSON object, of which `part` says how they were made, or all of it.
      what: whose data they are, as in "the gallery".
    """
    try:
        record = json.loads((out / file).read_text(encoding="utf-8"))
        there = dict(record[part] if part else record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} exists, but is no data of {what} ({error}); choose another --out") from error
    different = [
        f"{key} {there.get(key)!r} there, {value!r} asked for"
        for key, value in wanted.items()
        if there.get(key) != value
    ]
    if different:
        raise InputError(
            f"{out} holds data of {what} made otherwise ({'; '.join(different)}); delete it to make it again, or "
            "choose another --out"
        )
    for path in sorted(out.rglob(MANIFEST_FILE)):
        check_shards(path.parent, read_manifest(path.parent))


@contextlib.contextmanager
def gathered(out: pathlib.Path, file: str, record: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """A folder for several sets; with its record, the JSON file, it becomes `out` when the block ends."""
    temporary = out.with_name(f".{out.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    (temporary / file).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.rename(out)


class Entry(NamedTuple):
    """A picture to be: its latents f32[h, w, C], and the index of its group."""

    key: str
    latents: np.ndarray
    caption: str
    label: int


@contextlib.contextmanager
def written(
    path: str | os.PathLike,
    entries: Sequence[Entry],
    autoencoder: LinearAutoencoder,
    text_encoder: WordEncoder | MiniLM,
    *,
    patch_size: int,
    resolution: int,
    num_classes: int,
    records_per_shard: int = 4096,
) -> Iterator[FeatureShardWriter]:
    """A new directory of feature shards; what the block writes into the writer's `path` appears with them."""
    text, length = text_encoder.encode([entry.caption for entry in entries])
    block = autoencoder.block
    with FeatureShardWriter(
        path,
        latent_channels=autoencoder.channels,
        latent_scale=autoencoder.latent_scale,
        latent_kind="plain",
        downsample=block,
        patch_size=patch_size,
        resolution=resolution,
        autoencoder="linear",
        text_encoder="words" if isinstance(text_encoder, WordEncoder) else "minilm",
        caption_cleaning="none",
        text_dim=text_encoder.dim,
        max_text_tokens=text_encoder.max_tokens,
        text_dtype="float32",
        num_classes=num_classes,
        records_per_shard=records_per_shard,
    ) as writer:
        for i, entry in enumerate(entries):
            height, width, _ = entry.latents.shape
            size = (height * block, width * block)
            writer.write(
                Sample(
                    key=entry.key,
                    image_size=size,
                    bucket=size,
                    latent_mean=entry.latents,
                    latent_std=None,
                    texts=(Text(entry.caption, text[i, : length[i]]),),
                    label=entry.label,
                )
            )
        autoencoder.save(writer.path / LINEAR_AUTOENCODER_FILE)
        text_encoder.save(writer.path)
        yield writer
