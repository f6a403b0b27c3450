"""Feature shards -> batches in token space: shuffled, sharded by process, mixed, read ahead and exactly resumable.

Every sample has a number in one endless global order, which depends on the sources, their weights and the seed only.
Step k of P processes with batches of B takes the P·B samples from k·P·B on, process p the B from k·P·B + p·B on.
So the order, also within a global batch, is the same for any number of processes and of workers, and a position in it
is a single integer.
With `BatchSpec.group_buckets` the order depends on the global batch P·B too, whose samples then are of one bucket.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from pixart_jax.data.examples import BatchSpec, MakeExample, make_example, pack, pad_text
from pixart_jax.data.grouping import BucketOrder, InOrder, MixBatches
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import Manifest, check_shards, read_buckets, read_manifest
from pixart_jax.data.shards.records import SampleSource
from pixart_jax.errors import InputError

__all__ = ["BatchSpec", "SampleSet", "check_sources", "make_example", "make_iterator", "mix_samples"]

# Batches that are made ahead, each by its own thread, in every process that reads: enough to hide a read behind a step,
# little enough to fit in memory when a batch has hundreds of megabytes.
_READ_AHEAD = 2


def make_iterator(
    sources: Sequence[tuple[str | os.PathLike, float]],
    spec: BatchSpec,
    *,
    seed: int,
    shuffle: bool = True,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless iterator over batches of a weighted mix of feature-shard directories.

    Each batch is a dict of numpy arrays, B = spec.batch_size:
      tokens        f32[B, N, p·p·C]  patchified latents times their source's latent scale, zeros after the real ones
      positions     f32[B, N, 2]      see `tokens.grid_positions`
      num_tokens    i32[B]            how many of the N are real
      image_size    f32[B, 2]         original height and width in pixels
      aspect_ratio  f32[B, 1]         height / width of the bucket, see `Manifest.aspect_ratio`
      text_drop     bool[B]           where the model is to use its null embedding
      text          [B, L, text_dim] of spec.text_dtype, zeros after the real tokens, and
      text_length   i32[B]            when spec.num_classes is 0; else
      label         i32[B]
      control       f32[B, N, p·p·C]  as tokens, of the control pictures, where spec.control is set
      align         [B, N, F]  the tokens' targets, of text's dtype, where spec.align_dim is set
      noise         f32[B, N, p·p·C]  what tokens were drawn of, where spec.noise is set; zeros of those that were not

    Each epoch of a source visits every sample once, in a new order, with one of its captions drawn by their weights and
    a new posterior sample of the latents. With spec.group_buckets, see `grouping.BucketOrder` for what an epoch is;
    whole batches are then mixed.

    `get_state()` is a small JSON-able dict of the position after the batches given out, whatever was read ahead; it
    also restores into an iterator with other numbers of workers or processes or (not with group_buckets) another global
    batch. It fits Grain's Orbax handler, `grain.checkpoint.CheckpointSave`. Call `close()` when done, to end the
    workers.

    Args:
      sources: (directory, weight) pairs; the weights' ratios are the shares of samples drawn.
      spec: the batch.
      seed: of the order, the captions drawn, the posterior samples and the text drops.
      shuffle: False reads each source in its stored order, or bucket by bucket.
      num_workers: processes that read and assemble; 0 does it in this process, in threads.
      process_index, process_count: this process among those training together.

    Raises:
      InputError: see `check_sources`; or an argument is out of range.
    """
    sets = [
        SampleSet(ShardReader(directory), manifest, functools.partial(read_buckets, directory, manifest), weight)
        for (directory, weight), manifest in zip(sources, check_sources(sources, spec), strict=True)
    ]
    return mix_samples(
        sets,
        spec,
        seed=seed,
        shuffle=shuffle,
        num_workers=num_workers,
        process_index=process_index,
        process_count=process_count,
    )


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples to draw batches from, with random access; threads may share it, and it should pickle small.

    Attributes:
      samples: at least one, each of which fits the batch.
      manifest: of the samples.
      read_buckets: gives integers [num_samples]: the place of each sample's bucket in `list(manifest.buckets)`.
      weight: its share of the samples drawn beside the other sets', above 0.
    """

    samples: SampleSource
    manifest: Manifest
    read_buckets: Callable[[], np.ndarray]
    weight: float = 1.0


def mix_samples(
    sets: Sequence[SampleSet],
    spec: BatchSpec,
    *,
    seed: int,
    shuffle: bool = True,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """What `make_iterator` says, of samples that need not be feature shards.

    Raises:
      InputError: an argument is out of range.
    """
    for name, value, low in (("seed", seed, 0), ("num_workers", num_workers, 0), ("process_count", process_count, 1)):
        if value < low:
            raise InputError(f"{name} must be at least {low}, not {value!r}")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index must lie in [0, {process_count}), not {process_index!r}")
    global_batch_size = spec.batch_size * process_count
    streams = []
    for number, each in enumerate(sets):
        # Grain shuffles epoch e with seed + e, so neighbouring seeds must not stay neighbours, nor sources share one.
        order_seed, sample_seed = (int(s) for s in np.random.SeedSequence([seed, number]).generate_state(2))
        make = MakeExample(each.manifest, spec)
        if spec.group_buckets:
            counts = list(each.manifest.buckets.values())
            order = BucketOrder(each.read_buckets, counts, global_batch_size, order_seed if shuffle else None)
            stream = grain.MapDataset.source(InOrder(each.samples, order)).random_map(make, seed=sample_seed)
        else:
            stream = grain.MapDataset.source(each.samples)
            if shuffle:
                stream = stream.shuffle(order_seed)
            # Before repeat, indices still count through the epochs: each visit of a sample has its own random numbers.
            stream = stream.random_map(make, seed=sample_seed).repeat()
        streams.append(stream)
    weights = [each.weight for each in sets]
    if spec.group_buckets:
        examples = grain.MapDataset.select_from_datasets(streams, MixBatches(weights, global_batch_size))
    else:
        examples = grain.MapDataset.mix(streams, weights)
    return _BatchIterator(
        examples,
        spec,
        identity={
            "seed": seed,
            "shuffle": shuffle,
            "sources": [[each.manifest.num_samples, each.weight / sum(weights)] for each in sets],
            # The global batch is part of this order; of None it is not.
            "group_buckets": global_batch_size if spec.group_buckets else None,
        },
        num_workers=num_workers,
        process_index=process_index,
        process_count=process_count,
    )


def check_sources(sources: Sequence[tuple[str | os.PathLike, float]], spec: BatchSpec) -> list[Manifest]:
    """Checks every source against the batch's shapes and its own files, before any work starts.

    Returns:
      the sources' manifests.

    Raises:
      InputError: names the directory, the field with both values, and the cure.
    """
    if not sources:
        raise InputError("no data sources; give at least one directory of feature shards")
    manifests = []
    for directory, weight in sources:
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"{directory}: the source's weight must be a positive number, not {weight!r}")
        manifest = read_manifest(directory)
        if problems := list(_mismatches(manifest, spec)):
            raise InputError("\n".join(f"{directory}: {problem}" for problem in problems))
        check_shards(directory, manifest)
        manifests.append(manifest)
    return manifests


def _mismatches(manifest: Manifest, spec: BatchSpec) -> Iterator[str]:
    if manifest.latent_channels != spec.latent_channels:
        yield (
            f"latent_channels is {manifest.latent_channels} in the data, {spec.latent_channels} in the model; "
            f"use data encoded for this model, or a model with {manifest.latent_channels} input channels"
        )
    if spec.num_classes:
        if manifest.num_classes != spec.num_classes:
            yield (
                f"num_classes is {manifest.num_classes} in the data, {spec.num_classes} in the model; "
                "set the model's num_classes to the data's, or encode the data with labels"
            )
    else:
        if manifest.text_dim != spec.text_dim:
            yield (
                f"text_dim is {manifest.text_dim} in the data (text encoder {manifest.text_encoder!r}), "
                f"{spec.text_dim} in the model; use features of the model's text encoder, or set the model's text_dim"
            )
        if manifest.max_text_tokens > spec.max_text_tokens:
            yield (
                f"max_text_tokens is {manifest.max_text_tokens} in the data, only {spec.max_text_tokens} in the model; "
                "raise the model's, or encode the captions again with the model's limit"
            )
    if spec.control and manifest.control == "none":
        yield (
            "the data have no control pictures, and the model follows one (config.adapter.kind='controlnet'); encode "
            "the pictures again with them: tools.extract_features --control hed, canny or given"
        )
    if spec.align_dim and spec.align_dim != manifest.align_dim:
        yield (
            f"align_dim is {manifest.align_dim} in the data (of {manifest.align!r}), {spec.align_dim} in the run "
            "(config.align.dim); set it to the data's, or encode the pictures again: tools.extract_features --align"
        )
    for bucket in manifest.buckets:
        yield from _bucket_mismatches(bucket, manifest, spec)


def _bucket_mismatches(bucket: tuple[int, int], manifest: Manifest, spec: BatchSpec) -> Iterator[str]:
    name = f"the data's bucket {bucket[0]}x{bucket[1]}"
    rows, columns = manifest.latent_grid(bucket)
    if rows % spec.patch_size or columns % spec.patch_size:
        yield (
            f"patch_size is {spec.patch_size} in the model, {manifest.patch_size} in the data, and {name} has a latent "
            f"grid of {rows}x{columns}, no multiple of the model's; use the data's, or encode the data for the model's"
        )
        return
    rows, columns = rows // spec.patch_size, columns // spec.patch_size
    if rows * columns > spec.num_tokens:
        yield (
            f"num_tokens is {spec.num_tokens} in the model, but {name} has {rows}x{columns} = {rows * columns} tokens; "
            "raise the model's num_tokens (its resolution), or encode the data with smaller buckets"
        )
    if rows % spec.block_ratio or columns % spec.block_ratio:
        yield (
            f"block_ratio (key/value compression) is {spec.block_ratio} in the model, but {name} has {rows}x{columns} "
            "tokens, not a multiple on both sides; set the model's compression ratio to 1, or encode the data with "
            "buckets whose token rows and columns are multiples of it"
        )


def _live_with_parent(*_) -> None:
    """In a worker: it ends when the process that reads from it does, however that ends, and not by Ctrl-C before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # Grain calls this in its workers alone

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="life of the parent", daemon=True).start()


class _BatchIterator(grain.DatasetIterator):
    """Batches of this process's share of an endless global order of examples.

    Grain's own states differ with the number of workers. The order does not, so one number says it all, and the reading
    is simply started there.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        spec: BatchSpec,
        *,
        identity: dict[str, Any],
        num_workers: int,
        process_index: int,
        process_count: int,
    ):
        super().__init__()
        self._examples = examples
        self._spec = spec
        self._identity = identity
        self._num_workers = num_workers
        self._process_index = process_index
        self._process_count = process_count
        self._next_sample = 0
        self._reading: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._started())
        self._next_sample += self._spec.batch_size * self._process_count
        return batch

    def start_prefetch(self) -> None:
        self._started()

    def _started(self) -> grain.DatasetIterator:
        self._assert_not_closed()
        if self._reading is None:
            if self._num_workers and not flags.FLAGS.is_parsed():
                # Grain reads an absl flag before it starts workers, which raises outside absl's app.run (a notebook).
                flags.FLAGS.mark_as_parsed()
            # Workers take turns by whole batches, because batching happens before they are dealt out.
            batches = self._examples[self._next_sample :].batch(
                self._spec.batch_size, drop_remainder=True, batch_fn=functools.partial(pack, spec=self._spec)
            )[self._process_index :: self._process_count]
            read_options = grain.ReadOptions(num_threads=_READ_AHEAD, prefetch_buffer_size=_READ_AHEAD)
            pad = functools.partial(pad_text, spec=self._spec)
            if self._num_workers:
                workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
                batches = batches.to_iter_dataset(read_options).mp_prefetch(workers, _live_with_parent).map(pad)
            else:  # In the threads that read, not in the caller's.
                batches = batches.map(pad).to_iter_dataset(read_options)
            self._reading = iter(batches)
            self._reading.start_prefetch()
        return self._reading

    def get_state(self) -> dict[str, Any]:
        return {"next_sample": self._next_sample, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        for field, value in self._identity.items():
            if state.get(field) != value:
                raise InputError(
                    f"the input pipeline's saved state has {field} {state.get(field)!r}, this run {value!r} (sources "
                    "are [number of samples, share] each, group_buckets is the global batch of grouped buckets), so it "
                    "cannot continue in the same order; restore the data and settings of the saved run, or start a new "
                    "run from its parameters"
                )
        self._stop()
        self._next_sample = state["next_sample"]

    def close(self) -> None:
        super().close()
        self._stop()

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def __str__(self) -> str:
        return f"BatchIterator(next_sample={self._next_sample})"
