"""What training data are to the loop, whatever kind they are."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict

import jax
import numpy as np

from pixart_jax.config import ConfigDict, build_model, position_base
from pixart_jax.data.examples import BatchSpec, make_example
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, SampleSource
from pixart_jax.devices.sharding import batch_sharding
from pixart_jax.errors import InputError

# The `data.source` that is no directory. One of this name is "./synthetic".
SYNTHETIC = "synthetic"


# Pictures, and captions, that are encoded at a time in online training. Each bucket's last few are filled up to it, so
# that it should be far below a batch, which mixes buckets.
ENCODED_AT_A_TIME = 4


class Batches(Protocol):
    """Endless batches; see `data.pipeline.make_iterator` for what they hold."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Share(TypedDict):
    """Which part of every batch this process reads, and of how many."""

    process_index: int
    process_count: int


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run trains on. Nothing is read before it is asked for.

    Attributes:
      batches: this process's.
      samples: the data set, or some of it, for pictures of what was learnt; at least one.
      manifest: of the samples.
      decode: unscaled latents f32[1, h, w, C] to pictures f32[1, H, W, 3] in about [-1, 1].
      prompts: config.sample.prompts as samples without pictures, encoded when it is called; None without prompts.
      keep_encoders: puts into a folder what sampling has to know of the encoders; raises InputError if the run there
        started with others.
      row: what a batch holds beside what samples make, one row of it.
    """

    batches: Batches
    samples: SampleSource
    manifest: Manifest
    decode: Callable[[np.ndarray], np.ndarray]
    prompts: Callable[[], list[Sample]] | None
    keep_encoders: Callable[[pathlib.Path], None]
    row: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def parse_sources(text: str, key: str = "data.source") -> list[tuple[str, float]]:
    """ "DIR" or "DIR:WEIGHT,DIR:WEIGHT" as (directory, weight) pairs; `key` is the setting it comes from.

    A backslash before a comma or a colon makes it part of the path. A text that is as a whole a folder's path is one.

    Raises:
      InputError: the text is empty, or a part may be a folder or another one's weight.
    """
    if os.path.isdir(text.strip()) and not os.path.isdir(text.strip().rpartition(":")[0]):
        return [(text.strip(), 1.0)]
    sources = []
    for part in filter(None, (part.strip() for part in re.split(r"(?<!\\),", text))):
        head, colon, weight = part.rpartition(":")
        path = re.sub(r"\\([,:])", r"\1", part)
        if not colon or head.endswith("\\") or not head or not _is_number(weight):
            sources.append((path, 1.0))  # The colon belongs to the path.
            continue
        folder = re.sub(r"\\([,:])", r"\1", head)
        if os.path.isdir(path):
            if os.path.isdir(folder):
                raise InputError(
                    f"config.{key}: {part} may be the folder of this name, or {folder} with a weight: write "
                    f"{head}\\:{weight} for the first; rename one of them for the second"
                )
            sources.append((path, 1.0))
        else:
            sources.append((folder, float(weight)))
    if not sources:
        raise InputError(f"config.{key} is empty: name a directory of feature shards, e.g. data/quickstart")
    return sources


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
        control=config.adapter.kind == "controlnet",
        align_dim=config.align.dim if config.align.weight else 0,
    )


def abstract_batch(data: TrainingData, spec: BatchSpec, mesh, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a global batch, told from one sample: no batch is made for it."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype, sharding=batch_sharding(mesh, name))
        for name, value in {**make_example(data.samples[0], data.manifest, spec), **data.row}.items()
    }
