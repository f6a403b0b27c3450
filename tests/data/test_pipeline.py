"""The input pipeline, on real shards: contents of batches, order, sharding by process, mixing, resume, workers."""

import collections
import dataclasses

import ml_dtypes
import numpy as np
import pytest
from batch_cases import assert_batches_equal, batches, ids
from shard_cases import MANIFEST, make_sample, spec_with, write_set

from pixart_jax.data.examples import make_example
from pixart_jax.data.shards.records import Text, quantize
from pixart_jax.errors import InputError
from pixart_jax.tokens import grid_positions, patchify

# --- contents


def test_batch_shapes_and_dtypes(thirteen):
    (batch,) = batches(thirteen, 1, spec_with(text_dtype="bfloat16"))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((4, 8, 16), "float32"),
        "positions": ((4, 8, 2), "float32"),
        "num_tokens": ((4,), "int32"),
        "text": ((4, 5, 6), "bfloat16"),
        "text_length": ((4,), "int32"),
        "text_drop": ((4,), "bool"),
        "image_size": ((4, 2), "float32"),
        "aspect_ratio": ((4, 1), "float32"),
    }


def test_mixed_aspect_ratios_in_one_batch(tmp_path):
    buckets = [(32, 32), (16, 64), (64, 32), (16, 16)]
    samples = [make_sample(i, bucket=bucket, latent_std=None) for i, bucket in enumerate(buckets)]
    directory = write_set(tmp_path / "set", samples, latent_kind="plain", latent_scale=0.25)
    (batch,) = batches(directory, 1, spec_with(position_base=4, position_scale=2.0), shuffle=False)
    assert ids(batch) == [0, 1, 2, 3]
    for i, (sample, (height, width)) in enumerate(zip(samples, buckets, strict=True)):
        grid = height // 16, width // 16
        n = grid[0] * grid[1]
        assert batch["num_tokens"][i] == n
        latents = sample.latent_mean.astype(np.float32) * np.float32(0.25)
        np.testing.assert_array_equal(batch["tokens"][i, :n], patchify(latents, 2))
        np.testing.assert_array_equal(batch["positions"][i, :n], grid_positions(grid, 4, 2.0))
        assert not batch["tokens"][i, n:].any() and not batch["positions"][i, n:].any()
        assert batch["aspect_ratio"][i, 0] == np.float32(height / width)
        np.testing.assert_array_equal(batch["image_size"][i], [i + 1, 100])
        (text,) = sample.texts
        length = len(text.features)
        assert batch["text_length"][i] == length
        np.testing.assert_array_equal(batch["text"][i, :length], text.features)
        assert not batch["text"][i, length:].any()


def test_block_major_order(tmp_path):
    grids = [(4, 2), (2, 4)]
    samples = [make_sample(i, bucket=(16 * h, 16 * w), latent_std=None) for i, (h, w) in enumerate(grids)]
    directory = write_set(tmp_path / "set", samples, latent_kind="plain")
    spec = spec_with(batch_size=2, position_base=4)
    (row_major,) = batches(directory, 1, spec, shuffle=False)
    (block_major,) = batches(directory, 1, dataclasses.replace(spec, block_ratio=2), shuffle=False)
    for i, grid in enumerate(grids):
        for name in ("tokens", "positions"):
            rows = row_major[name][i].reshape(*grid, -1)
            first, last = rows[:2, :2].reshape(4, -1), rows[-2:, -2:].reshape(4, -1)
            np.testing.assert_array_equal(block_major[name][i], np.concatenate([first, last]))


def test_class_conditional_batch_has_labels_and_no_text(tmp_path):
    directory = write_set(tmp_path / "set", [make_sample(i, label=i % 3) for i in range(6)], num_classes=3)
    (batch,) = batches(directory, 1, spec_with(num_classes=3, text_dim=77, max_text_tokens=1))
    assert batch.keys() == {
        *("tokens", "positions", "num_tokens", "text_drop", "image_size", "aspect_ratio", "label"),
    }
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [i % 3 for i in ids(batch)]
    (batch,) = batches(directory, 1)  # a text-conditional model may read labelled data
    assert "label" not in batch


def test_data_without_text_serve_class_conditional_models_alone(tmp_path):
    samples = [make_sample(i, label=i % 3, texts=()) for i in range(6)]
    directory = write_set(tmp_path / "set", samples, text_dim=0, max_text_tokens=0, text_dtype="none", num_classes=3)
    (batch,) = batches(directory, 1, spec_with(num_classes=3))
    assert "text" not in batch and batch["label"].tolist() == [i % 3 for i in ids(batch)]
    with pytest.raises(InputError, match="text_dim is 0 in the data"):
        batches(directory, 1)


def test_aspect_ratio_is_the_label_of_a_known_bucket(tmp_path):
    manifest = dataclasses.replace(MANIFEST, resolution=1024)
    assert manifest.aspect_ratio((704, 1472)) == 0.48
    assert manifest.aspect_ratio((1472, 704)) == 2.09
    assert manifest.aspect_ratio((1024, 1024)) == 1.0
    assert manifest.aspect_ratio((352, 736)) == 352 / 736  # a bucket of 512
    for resolution in (0, 1000, 512):
        assert dataclasses.replace(MANIFEST, resolution=resolution).aspect_ratio((704, 1472)) == 704 / 1472
    directory = write_set(tmp_path / "set", [make_sample(0, bucket=(176, 368))], resolution=256)
    (batch,) = batches(directory, 1, spec_with(num_tokens=256))
    np.testing.assert_array_equal(batch["aspect_ratio"], np.full((4, 1), 0.48, np.float32))


def test_one_of_the_captions_is_drawn_per_visit(tmp_path):
    texts = [Text(str(i), np.full((1 + i, 6), i, np.float32), weight=w) for i, w in enumerate((1.0, 3.0))]
    alone = write_set(tmp_path / "alone", [make_sample(i, texts=(texts[0],)) for i in range(10)])
    both = write_set(tmp_path / "both", [make_sample(i, texts=tuple(texts)) for i in range(10)])
    spec = spec_with(batch_size=500)
    (one,), (two,) = (batches(source, 1, spec, shuffle=False) for source in (alone, both))
    drawn = two["text_length"] - 1
    np.testing.assert_array_equal(two["text"][:, 0, 0], drawn)
    assert abs(drawn.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 500)
    per_sample = collections.defaultdict(set)
    for i, choice in zip(ids(two), drawn, strict=True):
        per_sample[i].add(int(choice))
    assert all(choices == {0, 1} for choices in per_sample.values())
    for name in ("tokens", "text_drop", "image_size"):  # a second caption changes nothing else
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("text_dtype", ["float32", "bfloat16"])
def test_int8_text_is_dequantized(tmp_path, text_dtype):
    text = Text("", *quantize(np.random.default_rng(0).standard_normal((3, 6))))
    directory = write_set(tmp_path / "set", [make_sample(0, texts=(text,))], text_dtype="int8")
    (batch,) = batches(directory, 1, spec_with(text_dtype=text_dtype))
    expected = (text.features.astype(np.float32) * text.scale[:, None]).astype(batch["text"].dtype)
    assert batch["text"].dtype.name == text_dtype
    for row in batch["text"]:
        np.testing.assert_array_equal(row[:3], expected)
        assert not row[3:].any()


def test_text_is_cast(tmp_path):
    text = np.full((2, 6), 1.0 + 2**-7, ml_dtypes.bfloat16)
    directory = write_set(tmp_path / "set", [make_sample(0, texts=(Text("", text),))], text_dtype="bfloat16")
    (batch,) = batches(directory, 1)
    assert batch["text"].dtype == np.float32 and (batch["text"][:, :2] == 1.0 + 2**-7).all()


def test_latents_are_drawn_from_their_posterior(tmp_path):
    sample = make_sample(0, bucket=(128, 128))
    directory = write_set(tmp_path / "set", [sample], latent_scale=0.5)
    spec = spec_with(num_tokens=64, batch_size=10)
    tokens = np.concatenate([batch["tokens"] for batch in batches(directory, 2, spec)])
    mean, std = (patchify(a.astype(np.float32), 2) for a in (sample.latent_mean, sample.latent_std))
    z = (tokens / 0.5 - mean) / std
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03  # 20,480 draws: five standard errors
    correlation = np.corrcoef(z.reshape(20, -1)) - np.eye(20)
    assert abs(correlation).max() < 0.2


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_text_drop_rate(thirteen, probability):
    spec = spec_with(batch_size=500, text_drop_prob=probability)
    drops = [batch["text_drop"] for batch in batches(thirteen, 4, spec, shuffle=False)]
    tolerance = 5 * np.sqrt(probability * (1 - probability) / 2000)
    assert abs(np.mean(drops) - probability) <= tolerance


def test_text_drop_prob_leaves_the_latents_alone(thirteen):
    (a,), (b,) = (batches(thirteen, 1, spec_with(text_drop_prob=p)) for p in (0.0, 1.0))
    np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_example_without_random_numbers_is_the_mean():
    sample = make_sample(3)
    heavy = Text("", np.ones((2, 6), np.float32), weight=2.0)
    sample = dataclasses.replace(sample, texts=(*sample.texts, heavy))
    example = make_example(sample, MANIFEST, spec_with(text_drop_prob=1.0))
    np.testing.assert_array_equal(example["tokens"][:4], patchify(sample.latent_mean.astype(np.float32), 2) * 0.5)
    assert not example["text_drop"]
    assert example["text_length"] == 2 and example["text"][:2].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_tokens": 3}, "'sample-4': latent_mean makes 4 tokens"), ({"max_text_tokens": 4}, "'sample-4': text has 5")],
)
def test_example_that_does_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        make_example(make_sample(4), MANIFEST, spec_with(**changes))


# --- order


def test_every_epoch_has_each_sample_once_in_a_new_order(thirteen):
    epochs = [ids(batch) for batch in batches(thirteen, 5, spec_with(batch_size=13))]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_the_order_of_a_seed_is_the_one_it_always_was(thirteen, tmp_path):
    assert [ids(batch) for batch in batches(thirteen, 3, seed=5)] == [[7, 10, 9, 3], [1, 12, 5, 6], [0, 8, 4, 2]]
    other = write_set(tmp_path / "other", [make_sample(100 + i) for i in range(7)])
    assert [ids(batch) for batch in batches([(thirteen, 1.0), (other, 3.0)], 3, seed=5)] == [
        *([7, 103, 102, 104], [10, 105, 101, 100], [9, 106, 103, 106]),
    ]


def test_each_epoch_draws_new_latents(thirteen):
    first, second = batches(thirteen, 2, spec_with(batch_size=13))
    first, second = (b["tokens"][np.argsort(ids(b))] for b in (first, second))
    assert all(np.abs(x - y).max() > 0.1 for x, y in zip(first, second, strict=True))


def test_without_shuffle_the_stored_order(thirteen):
    assert [ids(batch) for batch in batches(thirteen, 4, shuffle=False)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 0, 1, 2],
    ]


def test_seeds(thirteen):
    spec = spec_with(batch_size=13)
    one, again, two = (batches(thirteen, 3, spec, seed=seed) for seed in (1, 1, 2))
    assert_batches_equal(one, again)
    orders = {tuple(ids(batch)) for batch in one + two}
    assert len(orders) == 6  # in particular, seed 1's second epoch is not seed 2's first


def test_equal_sources_have_orders_and_draws_of_their_own(tmp_path):
    a, b = (write_set(tmp_path / name, 8) for name in "ab")
    (batch,) = batches([(a, 1.0), (b, 1.0)], 1, spec_with(batch_size=16))
    order, tokens = ids(batch), batch["tokens"]
    assert sorted(order[::2]) == sorted(order[1::2]) == list(range(8))
    assert order[::2] != order[1::2]
    same = [np.abs(tokens[2 * order[::2].index(i)] - tokens[1 + 2 * order[1::2].index(i)]).max() for i in range(8)]
    assert min(same) > 0.1


def test_fewer_samples_than_a_batch(tmp_path):
    directory = write_set(tmp_path / "set", 1)
    assert [ids(batch) for batch in batches(directory, 2, process_index=1, process_count=2)] == [[0] * 4] * 2


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_processes_share_the_same_global_batches(tmp_path, process_count):
    directory = write_set(tmp_path / "set", 20)
    whole = batches(directory, 6, spec_with(batch_size=8))
    spec = spec_with(batch_size=8 // process_count)
    shares = [batches(directory, 6, spec, process_index=i, process_count=process_count) for i in range(process_count)]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([share[step][name] for share in shares]) for name in batch}
        assert_batches_equal([joined], [batch])
        if step < 2:  # within the first epoch
            assert len(set(ids(joined))) == 8


@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.7, 0.3), (5.0, 5.0)])
def test_mix_follows_the_weights(tmp_path, weights):
    few = write_set(tmp_path / "few", 3, latent_scale=1.0)
    many = write_set(tmp_path / "many", [make_sample(100 + i) for i in range(7)], latent_scale=2.0)
    sources = [(few, weights[0]), (many, weights[1])]
    counts = collections.Counter()
    for batch in batches(sources, 4, spec_with(batch_size=100), shuffle=False):
        for number in ids(batch):
            counts[number] += 1
    share = sum(count for number, count in counts.items() if number < 100)
    assert abs(share - 400 * weights[0] / sum(weights)) <= 2
    for members in (range(3), range(100, 107)):  # every sample of a source equally often
        drawn = [counts[i] for i in members]
        assert max(drawn) - min(drawn) <= 1


def test_each_source_has_its_own_latent_scale(tmp_path):
    samples = [make_sample(0, latent_std=None)]
    one, two = (
        write_set(tmp_path / str(scale), samples, latent_kind="plain", latent_scale=scale) for scale in (1.0, 2.0)
    )
    (batch,) = batches([(one, 1.0), (two, 1.0)], 1, spec_with(batch_size=2))
    np.testing.assert_array_equal(batch["tokens"][0] * 2, batch["tokens"][1])
