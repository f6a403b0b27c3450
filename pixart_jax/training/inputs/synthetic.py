"""Random numbers in place of data, with encoders of their own."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import SampleSet, mix_samples
from pixart_jax.data.shards.manifest import write_manifest
from pixart_jax.data.synthetic import SyntheticSamples
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE, copy_encoders
from pixart_jax.training.inputs.base import Share, TrainingData
from pixart_jax.training.inputs.encoders import open_prompts


def open_synthetic(config: ConfigDict, spec: BatchSpec, share: Share) -> TrainingData:
    """Random numbers, with encoders of their own."""
    require_setting(
        config, not config.data.vae, "data.vae", "synthetic data have an autoencoder of their own; set it to ''"
    )
    samples = SyntheticSamples(spec, config.model.resolution)
    return TrainingData(
        batches=mix_samples(
            [SampleSet(samples, samples.manifest, samples.read_buckets)],
            spec,
            seed=config.seed,
            num_workers=config.data.num_workers,
            **share,
        ),
        samples=samples,
        manifest=samples.manifest,
        decode=samples.autoencoder.decode,
        prompts=open_prompts(config, spec, samples.manifest, lambda: samples.text_encoder),
        keep_encoders=functools.partial(keep_synthetic_encoders, samples),
    )


def keep_synthetic_encoders(samples: SyntheticSamples, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        samples.autoencoder.save(directory / LINEAR_AUTOENCODER_FILE)
        if not samples.spec.num_classes:
            samples.text_encoder.save(directory)
        # The encoders outlive the samples, which are nowhere.
        write_manifest(directory, dataclasses.replace(samples.manifest, num_samples=0, bucket_histogram={}))
        copy_encoders(directory, samples.manifest, target)
