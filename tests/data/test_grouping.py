"""Global batches of one bucket each: the order itself, and the pipeline that reads in it."""

import collections
import contextlib
import itertools
import json
import pickle

import numpy as np
import pytest
from batch_cases import assert_batches_equal, batches, ids
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_cases import SPEC, make_sample, spec_with, write_set

from pixart_jax.config import default_config
from pixart_jax.data.grouping import BucketOrder
from pixart_jax.data.pipeline import make_iterator
from pixart_jax.errors import InputError
from pixart_jax.training.inputs.base import batch_spec

BUCKETS = {(16, 16): 1, (16, 64): 9, (32, 32): 13}


def make_order(counts, batch_size, seed=0):
    """Samples of buckets 0, 1, 2 ... shuffled together; returns the order and each sample's bucket."""
    places = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    np.random.default_rng(1).shuffle(places)
    return BucketOrder(lambda: places, counts, batch_size, seed), places


def runs(order, count, batch_size, start=0):
    return [[order[(start + k) * batch_size + i] for i in range(batch_size)] for k in range(count)]


# --- the order


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12), st.none() | st.integers(0, 2**32 - 1))
def test_epochs_draw_every_sample_once_and_keep_what_is_left(counts, batch_size, seed):
    order, places = make_order(counts, batch_size, seed)
    seen = collections.Counter()
    batch = 0
    for epoch in range(1, 5):
        end = sum(epoch * count // batch_size for count in counts)
        for run in runs(order, end - batch, batch_size, start=batch):
            assert len({int(places[i]) for i in run}) == 1
            seen.update(run)
        batch = end
        # All of `epoch` passes but what waits: fewer than a batch of each bucket.
        for bucket, count in enumerate(counts):
            drawn = [seen[i] for i in np.flatnonzero(places == bucket)]
            assert sum(drawn) == epoch * count // batch_size * batch_size
            assert max(drawn) <= epoch and max(drawn) - min(drawn) <= -(-batch_size // count)


def test_passes_of_a_bucket_are_whole_and_each_in_a_new_order():
    order, places = make_order([9, 40], 9)
    passes = [tuple(run) for run in runs(order, 49 * 3, 9) if places[run[0]] == 0]
    assert len(passes) == 27
    assert all(sorted(p) == np.flatnonzero(places == 0).tolist() for p in passes)
    assert len(set(passes)) == 27


def test_small_buckets_are_not_starved():
    counts, batch_size = [1, 3, 50], 8
    order, places = make_order(counts, batch_size)
    drawn = collections.Counter(int(places[run[0]]) for run in runs(order, 54 * 5, batch_size))
    assert [drawn[b] for b in range(3)] == [5, 15, 250]  # 40 epochs: 5 of 8 and 40·3/8 and 40·50/8


def test_batches_of_buckets_are_mixed_and_differ_between_epochs():
    order, places = make_order([40, 40, 40], 4)
    epochs = [[int(places[run[0]]) for run in runs(order, 30, 4, start=30 * e)] for e in range(4)]
    assert all(sorted(epoch) == [0] * 10 + [1] * 10 + [2] * 10 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert all(len(list(itertools.groupby(epoch))) > 10 for epoch in epochs)


def test_without_a_seed_buckets_follow_one_another():
    order, places = make_order([5, 4], 2, seed=None)
    zero, one = (np.flatnonzero(places == b).tolist() for b in range(2))
    assert runs(order, 4, 2) == [zero[:2], zero[2:4], one[:2], one[2:]]
    assert runs(order, 3, 2, start=4)[0] == [zero[4], zero[0]]


def test_seeds_make_orders():
    kinds = [tuple(i for run in runs(make_order([20, 20], 4, seed)[0], 5, 4) for i in run) for seed in (0, 1, 0)]
    assert kinds[0] == kinds[2] != kinds[1]


def test_large_buckets_are_shuffled_whole():
    count = 5000
    order, _ = make_order([count], 10)
    drawn = [order[i] for i in range(2 * count)]
    assert sorted(drawn[:count]) == sorted(drawn[count:]) == list(range(count))
    assert drawn[:count] != drawn[count:]
    assert abs(np.corrcoef(drawn[:count], np.arange(count))[0, 1]) < 0.1


def test_far_places_are_found_at_once_and_pickles_are_small():
    counts = [3, 100_000, 999_999, 7]
    order, places = make_order(counts, 2048)
    far = 10**12 * 2048
    assert len({int(places[order[far + i]]) for i in range(0, 2048, 97)}) == 1
    order = BucketOrder(BigTable(counts), counts, 2048, 0)
    expected = order[far]
    assert len(pickle.dumps(order)) < 1000
    assert pickle.loads(pickle.dumps(order))[far] == expected


class BigTable:
    def __init__(self, counts):
        self.counts = counts

    def __call__(self):
        return np.repeat(np.arange(len(self.counts), dtype=np.uint8), self.counts)


def test_the_order_of_a_seed_stays():
    """Runs resume in it: change it only with a new name for it in the iterator's state."""
    order, _ = make_order([5, 6], 3, seed=7)
    assert runs(order, 5, 3) == [[3, 7, 4], [1, 8, 6], [0, 2, 9], [3, 4, 5], [0, 9, 6]]
    order, _ = make_order([5000], 3, seed=7)
    assert runs(order, 2, 3) == [[312, 1990, 3517], [2384, 1683, 1265]]


# --- the pipeline


@pytest.fixture
def mixed(tmp_path):
    """Directory of 23 samples in the buckets of BUCKETS, in no order."""
    buckets = [bucket for bucket, count in BUCKETS.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(buckets)
    return write_set(tmp_path / "mixed", [make_sample(i, bucket=tuple(map(int, b))) for i, b in enumerate(buckets)])


GROUPED = spec_with(group_buckets=True)


def grouped(directory, count, spec=GROUPED, **options):
    return batches(directory, count, spec, **options)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_batch_is_of_one_bucket(mixed, shuffle):
    seen = collections.Counter()
    for batch in grouped(mixed, 4 * 23, shuffle=shuffle):
        assert len(set(batch["num_tokens"])) == len(set(batch["aspect_ratio"][:, 0])) == 1
        assert batch["tokens"].shape == (4, 8, 16)  # padded as ever: one compiled program
        seen.update(ids(batch))
    assert set(seen.values()) == {16}  # 4·23 batches of 4 are sixteen epochs, and no bucket has any left


@pytest.mark.parametrize("group", [False, True])
def test_the_config_decides(group):
    config = default_config()
    assert config.data.group_buckets is False
    config.data.group_buckets = group
    assert batch_spec(config).group_buckets is group


def test_mixed_batches_are_not(mixed):
    assert any(len(set(batch["num_tokens"])) > 1 for batch in batches(mixed, 10))


def test_each_visit_draws_new_latents(mixed):
    tokens = collections.defaultdict(list)
    for batch in grouped(mixed, 40):
        for i, row in zip(ids(batch), batch["tokens"], strict=True):
            tokens[i].append(row)
    for rows in tokens.values():
        assert all(np.abs(a - b).max() > 0.05 for a, b in itertools.pairwise(rows))


@pytest.mark.parametrize("process_count", [2, 4])
def test_all_processes_are_at_the_same_bucket(mixed, process_count):
    whole = grouped(mixed, 12)
    spec = spec_with(group_buckets=True, batch_size=4 // process_count)
    shares = [grouped(mixed, 12, spec, process_index=i, process_count=process_count) for i in range(process_count)]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([share[step][name] for share in shares]) for name in batch}
        assert_batches_equal([joined], [batch])


def test_resume_with_workers_and_other_processes(mixed):
    whole = grouped(mixed, 14)
    sources = [(mixed, 1.0)]
    with contextlib.closing(make_iterator(sources, GROUPED, seed=0, num_workers=2)) as iterator:
        assert_batches_equal([next(iterator) for _ in range(9)], whole[:9])
        state = json.loads(json.dumps(iterator.get_state()))
    assert_batches_equal(grouped(mixed, 5, state=state), whole[9:])
    assert_batches_equal(grouped(mixed, 5, state=state, num_workers=1), whole[9:])
    half = spec_with(group_buckets=True, batch_size=2)
    shares = [grouped(mixed, 5, half, state=state, process_index=i, process_count=2) for i in range(2)]
    assert [sorted(ids(a) + ids(b)) for a, b in zip(*shares, strict=True)] == [sorted(ids(b)) for b in whole[9:]]
    for spec in (half, SPEC):  # another global batch, or none
        with pytest.raises(InputError, match=r"saved state has group_buckets 4, this run (2|None)"):
            batches(mixed, 1, spec, state=state)


def test_sources_take_turns_by_whole_batches(mixed, tmp_path):
    other = write_set(tmp_path / "other", [make_sample(100 + i) for i in range(6)])
    drawn = grouped([(mixed, 1.0), (other, 3.0)], 24)
    assert_batches_equal([b for b in drawn if ids(b)[0] < 100], grouped(mixed, 6))
    counts = collections.Counter(i for batch in drawn for i in ids(batch) if i >= 100)
    assert all(len({i < 100 for i in ids(batch)}) == 1 for batch in drawn)
    assert set(counts.values()) == {12} and len(counts) == 6  # 18 batches of 4, from 6 samples
