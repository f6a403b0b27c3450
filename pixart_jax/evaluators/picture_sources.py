"""Sets of pictures that are no plain folder: whatever training reads pictures or their latents from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable

import numpy as np

from pixart_jax.data.pictures import Pictures, is_spelled_out, open_pictures
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import MANIFEST_FILE
from pixart_jax.evaluators.picture_sets import PictureFolder, PictureSet, pixels
from pixart_jax.figures.images import to_uint8

# Unscaled latents f32[1, h, w, C] to pictures f32[1, H, W, 3], about [-1, 1].
Decode = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SourcePictures:
    """A source of `data.pictures` as a `PictureSet`.

    Attributes:
      source: gives them; its captions are not looked at.
      path: what it was called.
      fingerprint: the source's own.
      per_unit: S.
    """

    source: Pictures
    path: str
    fingerprint: str
    per_unit: int

    def __len__(self) -> int:
        return len(self.source)

    def name(self, place: int) -> str:
        return f"{self.path}#{place}"

    def read(self, place: int) -> np.ndarray:
        return pixels(self.source[place].data)

    def ready(self, number: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class ShardPictures:
    """The pictures of feature shards, decoded from the means of their latents, as a `PictureSet`.

    Attributes:
      samples: the shards.
      path: their folder.
      decode: with the autoencoder that made the latents.
      per_unit: S.
    """

    samples: ShardReader
    path: str
    decode: Decode
    per_unit: int
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Of the manifest, which knows every shard by its size and its ends."""
        manifest = json.dumps(dataclasses.asdict(self.samples.manifest), sort_keys=True)
        return hashlib.sha256(manifest.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, place: int) -> str:
        return f"{self.path}#{place}"

    def read(self, place: int) -> np.ndarray:
        latents = self.samples[place].latent_mean.astype(np.float32)[None]
        with self._lock:  # One program at a time on the devices; what is decoded is prepared by all threads.
            return to_uint8(self.decode(latents)[0])

    def ready(self, number: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def open_picture_set(spec: str, per_unit: int, decoder: Callable[[ShardReader], Decode]) -> PictureSet:
    """The pictures that a name stands for.

    | spec                                     | pictures                                       |
    |------------------------------------------|------------------------------------------------|
    | a folder with a manifest.json            | feature shards, decoded from their latents     |
    | another folder                           | its picture files, at any depth                |
    | whatever else is spelled out             | what `data.pictures.open_pictures` finds there |

    Args:
      per_unit: S of the set.
      decoder: gives what decodes the latents of shards.

    Raises:
      InputError: there is no such thing, or no picture in it; or as `decoder`.
    """
    folder = pathlib.Path(spec)
    if (folder / MANIFEST_FILE).is_file():
        samples = ShardReader(folder)
        return ShardPictures(samples, spec, decoder(samples), per_unit)
    if folder.is_dir() or not is_spelled_out(spec):
        return PictureFolder.open(folder, per_unit)
    source = open_pictures(spec)
    return SourcePictures(source, spec, source.fingerprint(), per_unit)
