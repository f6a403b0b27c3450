"""Feature shards: a directory of ArrayRecord files of pre-encoded samples, described by one manifest.

The autoencoder and the text encoder are frozen and cost more than a training step, so they run once and training reads
their outputs. docs/feature_shards.md has the format; `records` and `manifest` its two halves.
"""

from __future__ import annotations

import bisect
import dataclasses
import fcntl
import itertools
import os
import pathlib
import shutil
import threading

import numpy as np
from array_record.python import array_record_module

from pixart_jax.data.manifest import Manifest, Shard, check_shards, read_manifest, write_manifest
from pixart_jax.data.records import FORMAT_VERSION, Sample, decode_sample, encode_sample
from pixart_jax.errors import InputError
from pixart_jax.files import fsync

__all__ = [
    "FORMAT_VERSION",
    "FeatureShardWriter",
    "Manifest",
    "Sample",
    "Shard",
    "ShardReader",
    "check_shards",
    "decode_sample",
    "encode_sample",
    "read_manifest",
]

# Groups of one record make random access read only what it wants. Uncompressed, because half-precision features hardly
# shrink (zstd: 17 % off bfloat16 text and float16 latents) and decompression quarters the reading speed.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class FeatureShardWriter:
    """Context manager that writes a set of feature shards, all of it or nothing.

    Samples go to a hidden directory beside the target, which gets the target's name only when the context ends without
    an exception, after everything is on disk. What a killed writer left behind is replaced by the next one.

        with FeatureShardWriter("data/train", latent_channels=4, ...) as writer:
            for sample in encode(images):
                writer.write(sample)

    Args:
      directory: the target; must not exist yet, its parent directories are made.
      latent_channels, latent_scale, latent_kind, downsample, patch_size, autoencoder, text_encoder, text_dim,
        max_text_tokens, num_classes: see `Manifest`.
      records_per_shard: readers keep every shard's file open; choose it for hundreds of shards, not tens of thousands.

    Raises:
      InputError: the target exists, another process is writing it, or a descriptive field is out of range; before
        anything is written. On leaving the context: no sample was written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        latent_channels: int,
        latent_scale: float,
        latent_kind: str,
        downsample: int,
        patch_size: int,
        autoencoder: str,
        text_encoder: str,
        text_dim: int,
        max_text_tokens: int,
        num_classes: int = 0,
        records_per_shard: int = 4096,
    ):
        self._target = pathlib.Path(directory).absolute()
        self._manifest = Manifest(
            format_version=FORMAT_VERSION,
            latent_channels=latent_channels,
            latent_scale=latent_scale,
            latent_kind=latent_kind,
            downsample=downsample,
            patch_size=patch_size,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            text_dim=text_dim,
            max_text_tokens=max_text_tokens,
            num_classes=num_classes,
            num_samples=0,
            shards=(),
            bucket_histogram={},
        )
        if records_per_shard < 1:
            raise InputError(f"records_per_shard must be at least 1, not {records_per_shard!r}")
        self._records_per_shard = records_per_shard
        self._check_target()
        self.path = self._target.with_name(f".{self._target.name}.incomplete")
        """The hidden directory: files put here before the context ends appear in the target, beside the shards."""
        self._lock: int | None = None
        self._shard: array_record_module.ArrayRecordWriter | None = None
        self._shard_sizes: list[int] = []
        self._keys: set[str] = set()
        self._histogram: dict[str, int] = {}

    def __enter__(self) -> FeatureShardWriter:
        self._check_target()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.close(_lock_directory(self.path))
            shutil.rmtree(self.path)
        self.path.mkdir()
        self._lock = _lock_directory(self.path)
        return self

    def write(self, sample: Sample) -> None:
        """Appends one sample.

        Raises:
          InputError: the sample contradicts the declared fields, holds a non-finite number or repeats a key; names the
            sample's key and the field.
        """
        _check_sample(sample, self._manifest)
        if sample.key in self._keys:
            raise InputError(f"sample {sample.key!r}: key was written before; keys must be unique within a set")
        if self._shard is None:
            path = self.path / _shard_file(len(self._shard_sizes))
            self._shard = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
            self._shard_sizes.append(0)
        self._shard.write(encode_sample(sample))
        self._shard_sizes[-1] += 1
        self._keys.add(sample.key)
        bucket = f"{sample.bucket[0]}x{sample.bucket[1]}"
        self._histogram[bucket] = self._histogram.get(bucket, 0) + 1
        if self._shard_sizes[-1] == self._records_per_shard:
            self._close_shard()

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            self._close_shard()
            if exception_type is None:
                self._publish()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)  # already renamed when all went well
            os.close(self._lock)

    def _close_shard(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.close()

    def _publish(self) -> None:
        if not self._keys:
            raise InputError(
                f"{self._target}: no sample was written, and an empty data set is of no use; write at least one"
            )
        shards = []
        for number, num_records in enumerate(self._shard_sizes):
            file = _shard_file(number)
            shards.append(Shard(file=file, num_records=num_records, num_bytes=(self.path / file).stat().st_size))
        histogram = dict(sorted(self._histogram.items()))
        manifest = dataclasses.replace(
            self._manifest, num_samples=len(self._keys), shards=tuple(shards), bucket_histogram=histogram
        )
        write_manifest(self.path, manifest)
        for path in [*self.path.rglob("*"), self.path]:
            fsync(path)
        self._check_target()
        self.path.rename(self._target)
        fsync(self._target.parent)

    def _check_target(self) -> None:
        if self._target.exists():
            raise InputError(
                f"{self._target} exists already; remove it, or write the feature shards to another directory"
            )


class ShardReader:
    """Random access to the samples of a directory of feature shards: a Grain data source.

    Opens files on first use and pickles as its manifest alone, so that worker processes start fast and open their own.
    Threads may share one reader.

    Attributes:
      manifest: of the directory.

    Raises:
      InputError: see `read_manifest`. Reading a sample: the file or the record is missing or damaged; names both.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory).absolute()
        self.manifest = read_manifest(self._directory)
        self._ends = list(itertools.accumulate(shard.num_records for shard in self.manifest.shards))
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self._directory}, which holds {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        position = int(index) - (self._ends[number] - self.manifest.shards[number].num_records)
        path = self._directory / self.manifest.shards[number].file
        try:
            record = self._reader(number, path).read([position])[0]
        except (RuntimeError, IndexError) as error:
            raise InputError(_unreadable(path, position, index, error)) from error
        try:
            return decode_sample(record)
        except InputError as error:
            raise InputError(_unreadable(path, position, index, error)) from error

    def _reader(self, number: int, path: pathlib.Path) -> array_record_module.ArrayRecordReader:
        with self._lock:
            if number not in self._readers:
                # Records are far larger than the default buffer's use: what it reads ahead would be thrown away.
                self._readers[number] = array_record_module.ArrayRecordReader(
                    str(path), _READER_OPTIONS, file_reader_buffer_size=1 << 15
                )
            return self._readers[number]

    def __getstate__(self) -> dict:
        return {"_directory": self._directory, "manifest": self.manifest, "_ends": self._ends}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"ShardReader({str(self._directory)!r})"


def _check_sample(sample: Sample, manifest: Manifest) -> None:
    """Raises InputError where a (well-formed) sample contradicts the set's declared fields."""

    def fail(field: str, problem: str):
        raise InputError(f"sample {sample.key!r}: {field} {problem}")

    wants_std = manifest.latent_kind == "mean_std"
    if wants_std != (sample.latent_std is not None):
        needs = "needs an array" if wants_std else "must be None"
        fail("latent_std", f"{needs} in a set of latent_kind {manifest.latent_kind!r}")
    cell = manifest.downsample * manifest.patch_size
    if sample.bucket[0] % cell or sample.bucket[1] % cell:
        fail("bucket", f"{sample.bucket} must be a multiple of downsample x patch_size = {cell} pixels on both sides")
    shape = (*manifest.latent_grid(sample.bucket), manifest.latent_channels)
    if sample.latent_mean.shape != shape:
        fail(
            "latent_mean",
            f"has shape {sample.latent_mean.shape}; bucket {sample.bucket} and latent_channels make {shape}",
        )
    length, text_dim = sample.text.shape
    if text_dim != manifest.text_dim:
        fail("text", f"has width {text_dim}, the set's text_dim is {manifest.text_dim}")
    if length > manifest.max_text_tokens:
        fail("text", f"has {length} tokens, the set's max_text_tokens is {manifest.max_text_tokens}; trim it")
    if manifest.num_classes == 0 and sample.label is not None:
        fail("label", f"is {sample.label}, but the set has num_classes 0: declare num_classes, or leave it None")
    if manifest.num_classes > 0 and (sample.label is None or sample.label >= manifest.num_classes):
        fail("label", f"is {sample.label}, but must lie in [0, num_classes) = [0, {manifest.num_classes})")
    for field in ("latent_mean", "latent_std", "text"):
        array = getattr(sample, field)
        if array is not None and not np.isfinite(array).all():
            fail(field, f"holds NaN or infinity (float16 ends at 65504; its dtype is {array.dtype.name})")
    if sample.latent_std is not None and (sample.latent_std < 0).any():
        fail("latent_std", "holds negative numbers, which no standard deviation is")


def _shard_file(number: int) -> str:
    return f"shard-{number:05d}.array_record"


def _unreadable(path: pathlib.Path, position: int, index: int, error: Exception) -> str:
    return (
        f"{path}: record {position} (sample {index} of the set) cannot be read: {error}. "
        "Copy the file again from where the set was made, or encode the set again"
    )


def _lock_directory(path: pathlib.Path) -> int:
    """Marks a directory as being written by this process; the mark dies with the process, unlike any file would."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{path} is being written by another process; wait for it, or stop it") from None
    except OSError:
        pass  # a file system without locks: atomicity holds, only this courtesy is lost
    return descriptor
