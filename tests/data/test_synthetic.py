"""Random data: shapes and shares of the real thing, and one order for any number of processes."""

import pickle

import numpy as np
import pytest

from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import SampleSet, mix_samples
from pixart_jax.data.synthetic import NUM_SAMPLES, SyntheticSamples


def spec(**fields):
    return BatchSpec(
        **{
            "batch_size": 8, "num_tokens": 256, "patch_size": 2, "latent_channels": 4, "position_base": 16,
            "position_scale": 1.0, "max_text_tokens": 12, "text_dim": 16, "text_dtype": "float32",
        } | fields
    )  # fmt: skip


def batches(spec, resolution=256, **arguments):
    samples = SyntheticSamples(spec, resolution)
    return mix_samples([SampleSet(samples, samples.manifest, samples.read_buckets)], spec, seed=3, **arguments)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_batches_mix_every_aspect_ratio_and_text_length():
    iterator = batches(spec(batch_size=400))
    batch = next(iterator)
    iterator.close()
    assert len(np.unique(batch["aspect_ratio"])) == 40
    assert set(batch["text_length"]) == set(range(1, 13))
    assert batch["num_tokens"].min() == 231 and batch["num_tokens"].max() == 256
    real = np.concatenate([row[:n] for row, n in zip(batch["tokens"], batch["num_tokens"], strict=True)])
    assert real.std() == pytest.approx(1, abs=0.02)
    assert 0.05 < batch["text_drop"].mean() < 0.15
    for text, length in zip(batch["text"], batch["text_length"], strict=True):
        assert text[:length].any(axis=1).all() and not text[length:].any()


def test_any_number_of_processes_and_a_resumed_one_see_the_same_order():
    whole = batches(spec())
    parts = [batches(spec(batch_size=4), process_index=i, process_count=2) for i in range(2)]
    for _ in range(3):
        expected, shares = next(whole), [next(part) for part in parts]
        for i, share in enumerate(shares):
            assert_equal(share, {name: value[4 * i : 4 * i + 4] for name, value in expected.items()})
    state, expected = whole.get_state(), next(whole)
    again = batches(spec())
    again.set_state(state)
    assert_equal(next(again), expected)
    for iterator in (whole, again, *parts):
        iterator.close()


def test_labels_take_the_place_of_text():
    iterator = batches(spec(num_classes=7, batch_size=64))
    batch = next(iterator)
    iterator.close()
    assert "text" not in batch and set(batch["label"]) == set(range(7))


def test_buckets_that_key_value_compression_does_not_divide_are_left_out():
    manifest = SyntheticSamples(spec(block_ratio=2), 256).manifest
    assert 1 < len(manifest.buckets) < 40
    assert all(side % 32 == 0 for bucket in manifest.buckets for side in bucket)


def test_grouped_buckets():
    iterator = batches(spec(group_buckets=True))
    for _ in range(3):
        assert len(np.unique(next(iterator)["aspect_ratio"])) == 1
    iterator.close()


def test_a_resolution_without_buckets_has_its_square():
    assert SyntheticSamples(spec(num_tokens=16), 64).manifest.bucket_histogram == {"64x64": NUM_SAMPLES}


def test_4096_pixels_and_300_tokens_of_text_pickle_as_arguments():
    samples = SyntheticSamples(spec(num_tokens=65536, max_text_tokens=300, text_dim=4096), 4096)
    sample = samples[7]
    assert sample.latent_mean.shape == (sample.bucket[0] // 8, sample.bucket[1] // 8, 4)
    assert len(pickle.dumps(samples)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(samples))[7].latent_mean, sample.latent_mean)
