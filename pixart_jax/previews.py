"""Pictures that a run draws of what it has learnt: its own training captions, real beside generated."""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging

from pixart_jax.data.feature_shards import ShardReader, read_manifest
from pixart_jax.data.pipeline import BatchSpec, make_example
from pixart_jax.errors import InputError
from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.features import load_autoencoder
from pixart_jax.images import false_colour, labelled_grid, to_uint8
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.sampling import SampleFn, sample_in_batches, stack_examples, tokens_to_latents


@dataclasses.dataclass(frozen=True)
class Previews:
    """Draws captions of one data set with a compiled sampling program, `batch_size` at a time.

    Attributes:
      directory: of feature shards.
      spec: the shapes of a batch.
      sample_fn: see `sampling.make_sample_fn`.
      guidance_scale, seed: of every picture drawn here.
    """

    directory: str
    spec: BatchSpec
    sample_fn: SampleFn
    guidance_scale: float
    seed: int
    batch_size: int

    def grid(self, params, count: int) -> np.ndarray:
        """uint8[H, W, 3]: up to `count` captions spread over the data set, each with its real and its generated
        picture."""
        indices = self._spread(count)
        real, generated = self._draw(params, indices)
        captions = [sample.caption for sample in self._samples(indices)]
        tiles = _same_size(to_uint8(picture) for pair in zip(real, generated, strict=True) for picture in pair)
        pairs = [np.stack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
        columns = max(1, round(len(pairs) ** 0.5))
        return labelled_grid(list(zip(pairs, captions, strict=True)), columns=columns)

    def retrieval(self, params, count: int) -> float:
        """retrieval@1 of up to `count` captions against every picture of the data set; all must be of one size."""
        indices = self._spread(count)
        _, generated = self._draw(params, indices)
        gallery = self._decode([sample.latent_mean.astype(np.float32) for sample in self._samples(range(self._size))])
        return retrieval_at_1(np.stack(generated), np.stack(gallery), indices)

    @property
    def _size(self) -> int:
        return len(ShardReader(self.directory))

    def _spread(self, count: int) -> np.ndarray:
        return np.unique(np.linspace(0, self._size - 1, count).astype(int))

    def _samples(self, indices) -> list:
        reader = ShardReader(self.directory)
        return [reader[int(i)] for i in indices]

    def _draw(self, params, indices) -> tuple[list[np.ndarray], list[np.ndarray]]:
        manifest = read_manifest(self.directory)
        samples = self._samples(indices)
        conditions = stack_examples([make_example(sample, manifest, self.spec) for sample in samples])
        tokens = sample_in_batches(
            self.sample_fn,
            params,
            conditions,
            null_branch(conditions),
            token_dim=self.spec.patch_size**2 * self.spec.latent_channels,
            seed=self.seed,
            indices=indices,  # Places in the data set, so that a picture is the same in any selection.
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
        )
        latents = [
            tokens_to_latents(
                row,
                (
                    sample.latent_mean.shape[0] // self.spec.patch_size,
                    sample.latent_mean.shape[1] // self.spec.patch_size,
                ),
                self.spec.patch_size,
                manifest.latent_scale,
                self.spec.block_ratio,
            )
            for row, sample in zip(tokens, samples, strict=True)
        ]
        return self._decode([s.latent_mean.astype(np.float32) for s in samples]), self._decode(latents)

    def _decode(self, latents: list[np.ndarray]) -> list[np.ndarray]:
        try:
            autoencoder = load_autoencoder(self.directory, read_manifest(self.directory))
        except InputError as error:
            logging.log_first_n(logging.WARNING, "previews in false colours: %s", 1, error)
            return [false_colour(latent[None])[0] for latent in latents]
        return [np.asarray(autoencoder.decode(latent[None]))[0] for latent in latents]


def _same_size(pictures) -> list[np.ndarray]:
    """Pictures of several aspect ratios centred on white tiles of one size."""
    pictures = list(pictures)
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    tiles = []
    for picture in pictures:
        tile = np.full((height, width, 3), 255, np.uint8)
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        tile[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        tiles.append(tile)
    return tiles
