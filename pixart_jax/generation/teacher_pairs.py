"""Pairs for distribution matching: noises, and what a teacher draws of them, as feature shards of its captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pixart_jax.data.examples import BatchSpec, make_example, stack_examples
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, SampleSource
from pixart_jax.devices.sharding import batch_sharding
from pixart_jax.encoding.engine import ONLY
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Skipped
from pixart_jax.generation.denoiser import denoiser_of
from pixart_jax.generation.parts import Parts
from pixart_jax.generation.request import Manner
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import SampleFn, draw_noise, make_sample_fn, sample_in_batches, words_of
from pixart_jax.tokens import same_latent_scale, tokens_to_latents


def spec_of(parts: Parts, batch_size: int) -> BatchSpec:
    """What a model draws at a time, at its own resolution."""
    model = parts.model
    return BatchSpec(
        batch_size=batch_size,
        num_tokens=parts.position_base**2,
        patch_size=model.patch_size,
        latent_channels=model.latent_channels,
        position_base=parts.position_base,
        position_scale=parts.position_scale,
        max_text_tokens=model.max_text_tokens,
        text_dim=model.text_dim,
        text_dtype="float32",
        block_ratio=max(model.kv_compress, default=1),
    )


class TeacherPairs:
    """`encoding.engine.Units` of pairs: pair i is of caption i of a source, begun anew after the last, and of the i-th
    noise of a seed. What a pair is depends on nothing else but the manner and, in its last bits, the batch.

    Args:
      samples, manifest: whose captions are drawn, in the sizes of their own pictures; found to fit `spec_of(parts)`.
      parts: the teacher.
      manner: how it draws.
      num_pairs, seed: of all.
      batch_size: pictures drawn at a time; rounded up to the number of devices.
      about: JSON-able, for the recipe: what was opened, and checksums of it.
      items_per_unit: of the engine.

    Raises:
      InputError: the captions belong to latents of another scale, or the sampler cannot take its steps.
    """

    def __init__(
        self,
        samples: SampleSource,
        manifest: Manifest,
        parts: Parts,
        manner: Manner,
        *,
        num_pairs: int,
        seed: int,
        batch_size: int,
        about: Mapping[str, Any],
        items_per_unit: int = 1024,
    ):
        if not same_latent_scale(parts.latent_scale, manifest.latent_scale):
            raise InputError(
                f"{parts.name} draws latents of scale {parts.latent_scale:g}, the captions' pictures have "
                f"{manifest.latent_scale:g}: they are another autoencoder's; name shards that were made for the teacher"
            )
        self._samples, self._source, self._parts, self._manner = samples, manifest, parts, manner
        self._schedule = parts.target.schedule(manner.sampler)
        self._sampler = build_sampler(manner.sampler, self._schedule, manner.num_steps)
        self._seed = seed
        self._batch_size = -(-batch_size // parts.mesh.size) * parts.mesh.size
        self._spec = spec_of(parts, self._batch_size)
        self.num_items, self.items_per_unit = num_pairs, items_per_unit
        self.recipe = {
            **about,
            **dataclasses.asdict(manner),
            "pairs": num_pairs,
            "seed": seed,
            "batch_size": self._batch_size,
            "items_per_unit": items_per_unit,
        }
        whole = dataclasses.replace(manifest, num_samples=0, shards=(), bucket_histogram={}, skipped={})
        # What else the source has is of its pictures.
        whole = dataclasses.replace(whole, num_classes=0, control="none", align="none", align_dim=0)
        self.manifests = {ONLY: dataclasses.replace(whole, latent_kind="drawn")}

    @functools.cached_property
    def _sample_fn(self) -> SampleFn:
        apply, prepare = denoiser_of(self._parts)
        apply = self._parts.target.fit(apply, self._schedule)
        return make_sample_fn(apply, self._schedule, self._sampler, guidance=self._manner.guidance, prepare=prepare)

    def samples(self, items: range) -> tuple[dict[str, list[Sample]], list[Skipped]]:
        """See `engine.Units`."""
        parts, spec, indices = self._parts, self._spec, np.asarray(items, np.int32)
        captions = [self._caption(i) for i in items]
        shape = (spec.num_tokens, spec.patch_size**2 * spec.latent_channels)
        noise = jax.device_get(draw_noise(words_of(self._seed), indices, shape)[0])
        conditions = stack_examples([make_example(sample, self._source, spec) for sample in captions])
        tokens = sample_in_batches(
            self._sample_fn,
            parts.weights(),
            conditions,
            null_branch(conditions) | self._empty_caption(len(items)),
            token_dim=shape[1],
            seed=self._seed,
            indices=indices,
            guidance_scale=self._manner.guidance_scale,
            batch_size=self._batch_size,
            noise=noise,
            place=lambda arrays: jax.device_put(arrays, batch_sharding(parts.mesh)),
        )
        pairs = zip(items, captions, tokens, noise, strict=True)
        return {ONLY: [self._pair(*pair) for pair in pairs]}, []

    def _empty_caption(self, count: int) -> dict[str, np.ndarray]:
        """What takes the place of a null caption that the teacher's weights do not hold: the encoder's of no words."""
        if self._parts.has_null_text:
            return {}
        text, length = self._encoded_empty
        empty = {"text": np.repeat(text, count, axis=0), "text_length": np.repeat(length, count)}
        return empty | {"text_drop": np.zeros(count, bool)}

    @functools.cached_property
    def _encoded_empty(self) -> tuple[np.ndarray, np.ndarray]:
        return self._parts.encode_text([""], lambda _: None)

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        """See `engine.Units`: every caption can be drawn."""
        return []

    def digest(self, items: range) -> str:
        """See `engine.Units`: the recipe says it all."""
        return ""

    def _caption(self, number: int) -> Sample:
        """The sample whose caption the pair is of, with that alone."""
        sample = self._samples[number % len(self._samples)]
        text = sample.draw_text(np.random.default_rng([self._seed, number]))
        return dataclasses.replace(sample, texts=(text,))

    def _pair(self, number: int, caption: Sample, tokens: np.ndarray, noise: np.ndarray) -> Sample:
        size = self._spec.patch_size
        grid = (caption.latent_mean.shape[0] // size, caption.latent_mean.shape[1] // size)

        def latents(tokens: np.ndarray, scale: float) -> np.ndarray:
            return tokens_to_latents(tokens, grid, size, scale, self._spec.block_ratio).astype(np.float16)

        return Sample(
            key=f"{number:08d}/{caption.key}",
            image_size=caption.image_size,
            bucket=caption.bucket,
            latent_mean=latents(tokens, self._source.latent_scale),
            latent_std=None,
            texts=caption.texts,
            noise=latents(noise, 1.0),
        )
