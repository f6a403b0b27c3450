"""Small feature-shard sets for the tests of pixart_jax.data."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, Text

FIELDS = {
    "latent_channels": 4,
    "latent_scale": 0.5,
    "latent_kind": "mean_std",
    "downsample": 8,
    "patch_size": 2,
    "resolution": 0,
    "autoencoder": "linear",
    "text_encoder": "toy",
    "caption_cleaning": "none",
    "text_dim": 6,
    "max_text_tokens": 5,
    "text_dtype": "float32",
}
MANIFEST = Manifest(**FIELDS)

SPEC = BatchSpec(
    batch_size=4,
    num_tokens=8,
    patch_size=2,
    latent_channels=4,
    position_base=2,
    position_scale=1.0,
    max_text_tokens=5,
    text_dim=6,
    text_dtype="float32",
)


def spec_with(**changes):
    return dataclasses.replace(SPEC, **changes)


def make_sample(index: int, *, bucket: tuple[int, int] = (32, 32), **changes) -> Sample:
    """Sample number `index`: recognisable by its image height, `index` + 1."""
    rng = np.random.default_rng(index)
    shape = (bucket[0] // 8, bucket[1] // 8, 4)
    sample = Sample(
        key=f"sample-{index}",
        image_size=(index + 1, 100),
        bucket=bucket,
        latent_mean=rng.standard_normal(shape).astype(np.float16),
        latent_std=rng.uniform(0.5, 1.5, shape).astype(np.float16),
        texts=(Text(f"caption {index}", rng.standard_normal((1 + index % 5, 6)).astype(np.float32)),),
    )
    return dataclasses.replace(sample, **changes)


def write_set(directory, samples, **fields):
    """Writes samples (or that many default ones) with FIELDS, some replaced; returns the directory."""
    if isinstance(samples, int):
        samples = [make_sample(i) for i in range(samples)]
    with FeatureShardWriter(directory, **(FIELDS | {"records_per_shard": 4} | fields)) as writer:
        for sample in samples:
            writer.write(sample)
    return directory


def assert_samples_equal(a: Sample, b: Sample) -> None:
    """Equal in every field, arrays in dtype, shape and every bit."""
    _assert_fields_equal(a, b)
    assert len(a.texts) == len(b.texts)
    for x, y in zip(a.texts, b.texts, strict=True):
        _assert_fields_equal(x, y)


def _assert_fields_equal(a, b) -> None:
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field.name
        elif field.name != "texts":
            assert x == y, field.name
