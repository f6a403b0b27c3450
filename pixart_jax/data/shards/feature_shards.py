"""Feature shards: a directory of ArrayRecord files of pre-encoded samples, described by one manifest.

The autoencoder and the text encoder are frozen and cost more than a training step, so they run once and training reads
their outputs. docs/feature_shards.md has the format; `records` and `manifest` its two halves. `shard_files` writes
shards one by one, for tools that outgrow `FeatureShardWriter`.
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import os
import pathlib
import shutil
import threading

from array_record.python import array_record_module

from pixart_jax.data.shards.manifest import Manifest, Shard, check_shards, read_buckets, read_manifest
from pixart_jax.data.shards.records import FORMAT_VERSION, Sample, Text, decode_sample, encode_sample, quantize
from pixart_jax.data.shards.shard_files import Part, ShardFile, assemble, check_target, write_shard
from pixart_jax.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "FeatureShardWriter",
    "Manifest",
    "Sample",
    "Shard",
    "ShardReader",
    "Text",
    "assemble",
    "check_shards",
    "decode_sample",
    "encode_sample",
    "quantize",
    "read_buckets",
    "read_manifest",
    "write_shard",
]

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
      latent_channels, latent_scale, latent_kind, downsample, patch_size, resolution, autoencoder, text_encoder,
        caption_cleaning, text_dim, max_text_tokens, text_dtype, num_classes, control, align, align_dim: see `Manifest`.
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
        resolution: int,
        autoencoder: str,
        text_encoder: str,
        caption_cleaning: str,
        text_dim: int,
        max_text_tokens: int,
        text_dtype: str,
        num_classes: int = 0,
        control: str = "none",
        align: str = "none",
        align_dim: int = 0,
        records_per_shard: int = 4096,
    ):
        self._target = pathlib.Path(directory).absolute()
        self._manifest = Manifest(
            latent_channels=latent_channels,
            latent_scale=latent_scale,
            latent_kind=latent_kind,
            downsample=downsample,
            patch_size=patch_size,
            resolution=resolution,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            caption_cleaning=caption_cleaning,
            text_dim=text_dim,
            max_text_tokens=max_text_tokens,
            text_dtype=text_dtype,
            num_classes=num_classes,
            control=control,
            align=align,
            align_dim=align_dim,
        )
        if records_per_shard < 1:
            raise InputError(f"records_per_shard must be at least 1, not {records_per_shard!r}")
        self._records_per_shard = records_per_shard
        check_target(self._target)
        self.path = self._target.with_name(f".{self._target.name}.incomplete")
        """The hidden directory: files put here before the context ends appear in the target, beside the shards."""
        self._lock: int  # on the hidden directory, from entering to leaving the context
        self._shard: ShardFile | None = None
        self._parts: list[Part] = []
        self._keys: set[str] = set()

    def __enter__(self) -> FeatureShardWriter:
        check_target(self._target)
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
        if sample.key in self._keys:
            raise InputError(f"sample {sample.key!r}: key was written before; keys must be unique within a set")
        if self._shard is None:
            path = self.path / f"shard-{len(self._parts):05d}.array_record"
            self._shard = ShardFile(path, self._manifest)
        self._shard.write(sample)
        self._keys.add(sample.key)
        if len(self._shard) == self._records_per_shard:
            self._publish_shard()

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            if exception_type is None:
                self._publish_shard()
                assemble(self.path, self._target, self._manifest, self._parts)
        finally:
            if self._shard is not None:
                self._shard.discard()
            shutil.rmtree(self.path, ignore_errors=True)  # already renamed when all went well
            os.close(self._lock)

    def _publish_shard(self) -> None:
        if self._shard is not None and len(self._shard):
            self._parts.append(self._shard.publish())
            self._shard = None


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
