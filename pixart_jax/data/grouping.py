"""The order in which a set is read when every global batch is to hold pictures of one bucket only."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from pixart_jax.data.shards.records import Sample, SampleSource

# Below this, one pass is shuffled as a whole: Grain's index shuffle takes 4 ms per index of 3, 6 µs of many thousands.
_SMALL = 4096


class BucketOrder:
    """An endless order of a set's samples, in runs of `batch_size` samples of one bucket.

    Every bucket has an endless queue of its own: pass after pass over its samples, each pass in a new order. Epoch e
    adds one pass to every queue, then takes off all whole batches, and deals them out in random order. So every sample
    is drawn once per epoch; the fewer than `batch_size` that are left of a bucket wait for the next epoch, as in the
    reference (spec §6.4), which wastes no sample and lets every bucket have its share however small: one of 3 samples
    fills a batch of 8, with repetitions, in every second or third epoch. A sample that waited may therefore be seen
    twice in an epoch, once for the last.

    Any place of the order is found without those before it: after e epochs a bucket of n samples has given
    floor(e·n / batch_size) batches. Pickles without its table of samples, which each process reads for itself.

    Args:
      read_buckets: gives the bucket of every sample, see `manifest.read_buckets`; called when first needed.
      counts: samples per bucket.
      batch_size: of the global batch.
      seed: of all orders; None keeps the stored order within buckets, which then follow one another.
    """

    def __init__(
        self, read_buckets: Callable[[], np.ndarray], counts: Sequence[int], batch_size: int, seed: int | None
    ):
        self._read_buckets = read_buckets
        self._counts = tuple(counts)
        self._batch_size = batch_size
        self._seeds = None
        if seed is not None:
            seeds = np.random.SeedSequence(seed).generate_state(len(self._counts) + 1)
            self._batch_seed, self._seeds = int(seeds[0]), [int(s) for s in seeds[1:]]
        self._make_caches()

    def __getitem__(self, position: int) -> int:
        """Number of the sample at a place of the order, from 0 up."""
        batch, place = divmod(int(position), self._batch_size)
        bucket, number = self._batch(batch)
        starts, samples = self._table()
        place += number * self._batch_size
        count = self._counts[bucket]
        place = place % count if self._seeds is None else _shuffled(place, count, self._seeds[bucket])
        return int(samples[starts[bucket] + place])

    def _locate(self, batch: int) -> tuple[int, int]:
        """The bucket of a batch, and its number among the batches of the bucket."""
        # (e·N - buckets·(B - 1)) / B <= batches given after e epochs <= e·N / B, which leaves a few epochs to search.
        total, size = sum(self._counts), self._batch_size
        low, high = batch * size // total, ((batch + 1) * size + len(self._counts) * (size - 1)) // total + 1
        epoch = bisect.bisect_right(range(high + 1), batch, lo=low, key=lambda e: sum(self._given(e))) - 1
        before, after = self._given(epoch), self._given(epoch + 1)
        place = batch - sum(before)
        if self._seeds is not None:
            # A set of its own per epoch, because the number of batches differs; the seed moves on as Grain's does.
            place = _shuffled(place, sum(after) - sum(before), (self._batch_seed + epoch) % 2**32)
        for bucket, (first, end) in enumerate(zip(before, after, strict=True)):
            if place < end - first:
                return bucket, first + place
            place -= end - first
        raise AssertionError("unreachable: the batches of the buckets are all of the epoch's")

    def _given(self, epochs: int) -> list[int]:
        """Batches that each bucket has given after so many epochs."""
        return [epochs * count // self._batch_size for count in self._counts]

    def _make_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each bucket starts in the list of all samples by bucket, and this list."""
        samples = np.argsort(self._read_buckets(), kind="stable")
        starts = np.cumsum([0, *self._counts])
        return starts, samples.astype(np.uint32 if len(samples) < 2**32 else np.uint64)

    def _make_caches(self) -> None:
        # Every sample of a batch asks for the batch, and threads take turns at a few batches.
        self._batch = functools.lru_cache(maxsize=64)(self._locate)
        self._table = functools.lru_cache(maxsize=1)(self._make_table)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_batch", "_table")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()


@dataclasses.dataclass(frozen=True)
class InOrder:
    """The samples of a set in an endless order: a Grain data source."""

    samples: SampleSource
    order: BucketOrder

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> Sample:
        return self.samples[self.order[position]]


class MixBatches(grain.transforms.DatasetSelectionMap):
    """Grain's mix in fixed proportions, of runs of `batch_size` samples instead of single ones."""

    def __init__(self, weights: Sequence[float], batch_size: int):
        numbered = [grain.MapDataset.range(sys.maxsize).map(functools.partial(_pair, i)) for i in range(len(weights))]
        self._batches = grain.MapDataset.mix(numbered, weights)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, self._batch_size)
        source, number = self._batches[batch]
        return source, number * self._batch_size + place


def _shuffled(position: int, count: int, seed: int) -> int:
    """What stands at `position` of endless passes over range(count), each in a new order."""
    passes, place = divmod(position, count)
    if count < _SMALL:
        return int(_small_pass(count, seed, passes)[place])
    return grain.MapDataset.range(count).shuffle(seed)[position]


@functools.lru_cache(maxsize=256)
def _small_pass(count: int, seed: int, number: int) -> np.ndarray:
    # Sorted raw bits, because numpy keeps those of a bit generator for ever, and may change `permutation`.
    return np.argsort(np.random.Philox(key=(seed << 64) | number).random_raw(count), kind="stable")


def _pair(source: int, number: int) -> tuple[int, int]:
    return source, number
