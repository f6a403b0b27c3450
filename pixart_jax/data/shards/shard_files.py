"""Feature shards one file at a time: for tools that write them apart and make them one set in the end.

part = write_shard(parts / "shard-00017.array_record", samples, manifest)  # in any order, by any process
assemble(parts, "data/train", manifest, [part, ...])  # in the order of the set
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from array_record.python import array_record_module

from pixart_jax.data.shards.ends import ends_crc32
from pixart_jax.data.shards.manifest import (
    BUCKETS_FILE,
    Manifest,
    Shard,
    bucket_name,
    buckets_array,
    check_shards,
    check_totals,
    write_manifest,
)
from pixart_jax.data.shards.records import LATENT_FIELDS, Sample, encode_sample
from pixart_jax.errors import InputError
from pixart_jax.files import fsync, write_atomically

# Groups of one record make random access read only what it wants. Uncompressed, because half-precision features hardly
# shrink (zstd: 17 % off bfloat16 text and float16 latents) and decompression quarters the reading speed.
_WRITER_OPTIONS = "group_size:1,uncompressed"

Part = tuple[Shard, Mapping[str, int]]
"""A written shard and its samples per bucket, keyed like `Manifest.bucket_histogram`."""


def write_shard(path: str | os.PathLike, samples: Iterable[Sample], manifest: Manifest) -> Part:
    """Writes one whole shard; its bytes depend on nothing but its samples.

    The shard stands under its name only when it is whole and on disk, and what stood there before is replaced. Beside
    it lies a small file for `assemble`, with the bucket of every sample.

    Args:
      path: of the shard, in an existing directory; any file name that is no other shard's of the set.
      samples: at least one. Keys must be unique within the set; this sees to it within the shard.
      manifest: describes the set; its shards, counts and histogram are not looked at.

    Raises:
      InputError: no sample, or one that contradicts the manifest, holds a non-finite number or repeats a key; names the
        key and the field. Nothing is left.
    """
    shard = ShardFile(path, manifest)
    keys = set()
    try:
        for sample in samples:
            if sample.key in keys:
                raise InputError(f"sample {sample.key!r}: key was written before; keys must be unique within a set")
            shard.write(sample)
            keys.add(sample.key)
        if not keys:
            raise InputError(f"{path}: a shard needs at least one sample")
        return shard.publish()
    finally:
        shard.discard()


def assemble(
    directory: str | os.PathLike, target: str | os.PathLike, manifest: Manifest, parts: Sequence[Part]
) -> Manifest:
    """Makes the shards that `write_shard` wrote to `directory` one set, and gives the directory the name `target`.

    Other files in the directory come along. A killed call has changed nothing that the next one minds.

    Args:
      directory: of the shards, on the file system of `target`.
      target: must not exist yet.
      manifest: describes the set; the same as for `write_shard`.
      parts: what `write_shard` returned, in the order of the set; shards may differ in their numbers of samples.

    Returns:
      the manifest of the set.

    Raises:
      InputError: the target exists, there are no parts, or a shard is missing, damaged or not what its part says; the
        directory keeps its name.
    """
    directory, target = pathlib.Path(directory), pathlib.Path(target)
    check_target(target)
    if not parts:
        raise InputError(f"{target}: no sample was written, and an empty data set is of no use; write at least one")
    shards = tuple(shard for shard, _ in parts)
    if len({shard.file for shard in shards}) < len(shards):
        raise InputError(f"{target}: a shard is listed twice among {len(shards)}; list every file once")
    histogram: dict[str, int] = {}
    for bucket, count in (item for _, counts in parts for item in counts.items()):
        histogram[bucket] = histogram.get(bucket, 0) + count
    manifest = dataclasses.replace(
        manifest,
        num_samples=sum(shard.num_records for shard in shards),
        shards=shards,
        bucket_histogram=dict(sorted(histogram.items())),
    )
    check_totals(manifest)
    places = buckets_array(manifest, np.concatenate([_read_sizes(directory, part) for part in parts]))
    write_atomically(directory / BUCKETS_FILE, lambda file: np.save(file, places))
    write_manifest(directory, manifest)
    check_shards(directory, manifest)
    for path in [*directory.rglob("*"), directory]:
        fsync(path)
    check_target(target)
    directory.rename(target)
    # Last, so that a killed call still finds them; in a finished set they do no harm.
    for shard in shards:
        _sizes_path(target / shard.file).unlink()
    fsync(target)
    fsync(target.parent)
    return manifest


class ShardFile:
    """One shard while it is written, under a hidden name."""

    def __init__(self, path: str | os.PathLike, manifest: Manifest):
        self._path = pathlib.Path(path)
        self._manifest = manifest
        self._hidden = self._path.with_name(f".{self._path.name}.tmp")
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._sizes: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def write(self, sample: Sample) -> None:
        """Appends one sample.

        Raises:
          InputError: the sample contradicts the manifest or holds a non-finite number; names its key and the field.
          OSError: the disk is full, or the like.
        """
        check_sample(sample, self._manifest)
        record = encode_sample(sample)
        with _disk_errors(self._hidden):
            if self._writer is None:
                self._writer = array_record_module.ArrayRecordWriter(str(self._hidden), _WRITER_OPTIONS)
            self._writer.write(record)
        self._sizes.append(sample.bucket)

    def publish(self) -> Part:
        """Gives the shard, which has at least one sample, its name."""
        self._close()
        fsync(self._hidden)
        sizes = np.array(self._sizes, np.int64)
        # An older shard goes first: killed halfway, no shard may stand beside the buckets of another.
        self._path.unlink(missing_ok=True)
        write_atomically(_sizes_path(self._path), lambda file: np.save(file, sizes))
        fsync(_sizes_path(self._path))
        self._hidden.replace(self._path)
        fsync(self._path.parent)
        num_bytes, crc = self._path.stat().st_size, ends_crc32(self._path)
        return Shard(self._path.name, len(self._sizes), num_bytes, crc), _histogram(sizes)

    def discard(self) -> None:
        """Removes what is not published."""
        with contextlib.suppress(OSError):  # What a full disk could not take in is not wanted any more.
            self._close()
        self._hidden.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with _disk_errors(self._hidden):  # Most is written only now.
                writer.close()


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Raises the OSError that ArrayRecord's RuntimeError tells of in words."""
    try:
        yield
    except RuntimeError as error:
        codes = [code for code in errno.errorcode if os.strerror(code) in str(error)]
        raise OSError(codes[0] if codes else errno.EIO, os.strerror(codes[0]) if codes else str(error), path) from error


def check_target(target: pathlib.Path) -> None:
    """Raises InputError if something is where a set is to be."""
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or write the feature shards to another directory")


def check_sample(sample: Sample, manifest: Manifest) -> None:
    """Raises InputError where a (well-formed) sample contradicts the set's declared fields."""

    def fail(field: str, problem: str):
        raise InputError(f"sample {sample.key!r}: {field} {problem}")

    wants_std = manifest.latent_kind == "mean_std"
    if wants_std != (sample.latent_std is not None):
        needs = "needs an array" if wants_std else "must be None"
        fail("latent_std", f"{needs} in a set of latent_kind {manifest.latent_kind!r}")
    for field, wanted in (("control_mean", True), ("control_std", wants_std)):
        if (there := getattr(sample, field) is not None) != (wanted and manifest.control != "none"):
            fail(field, f"{'must be None' if there else 'needs an array'} in a set of control {manifest.control!r}")
    if (manifest.latent_kind == "drawn") != (sample.noise is not None):
        needs = "must be None" if sample.noise is not None else "needs an array"
        fail("noise", f"{needs} in a set of latent_kind {manifest.latent_kind!r}")
    if (0 if sample.align is None else sample.align.shape[-1]) != manifest.align_dim:
        found = "is None" if sample.align is None else f"has width {sample.align.shape[-1]}"
        fail("align", f"{found} in a set of align {manifest.align!r}, align_dim {manifest.align_dim}")
    cell = manifest.downsample * manifest.patch_size
    if sample.bucket[0] % cell or sample.bucket[1] % cell:
        fail("bucket", f"{sample.bucket} must be a multiple of downsample x patch_size = {cell} pixels on both sides")
    if problem := manifest.size_problem(sample.bucket):
        fail("bucket", f"does not fit: {problem}")
    shape = (*manifest.latent_grid(sample.bucket), manifest.latent_channels)
    if sample.latent_mean.shape != shape:
        fail(
            "latent_mean",
            f"has shape {sample.latent_mean.shape}; bucket {sample.bucket} and latent_channels make {shape}",
        )
    if manifest.text_dim and not sample.texts:
        fail("texts", f"must hold at least one caption in a set of text_dim {manifest.text_dim}")
    if sample.texts and not manifest.text_dim:
        fail("texts", "must be empty in a set without text (text_dim 0)")
    for number, text in enumerate(sample.texts):
        length, text_dim = text.features.shape
        if text_dim != manifest.text_dim:
            fail(f"texts[{number}]", f"has width {text_dim}, the set's text_dim is {manifest.text_dim}")
        if length > manifest.max_text_tokens:
            fail(
                f"texts[{number}]",
                f"has {length} tokens, the set's max_text_tokens is {manifest.max_text_tokens}; trim it",
            )
        if text.features.dtype.name != manifest.text_dtype:
            fail(
                f"texts[{number}]",
                f"has dtype {text.features.dtype.name}, the set's text_dtype is {manifest.text_dtype}",
            )
    if manifest.num_classes == 0 and sample.label is not None:
        fail("label", f"is {sample.label}, but the set has num_classes 0: declare num_classes, or leave it None")
    if manifest.num_classes > 0 and (sample.label is None or sample.label >= manifest.num_classes):
        fail("label", f"is {sample.label}, but must lie in [0, num_classes) = [0, {manifest.num_classes})")
    floats = {name: getattr(sample, name) for name in (*LATENT_FIELDS, "align")}
    for number, text in enumerate(sample.texts):
        floats[f"texts[{number}]"] = text.features if text.scale is None else text.scale
    for field, array in floats.items():
        if array is not None and not np.isfinite(array).all():
            fail(field, f"holds NaN or infinity (float16 ends at 65504; its dtype is {array.dtype.name})")
    for field in ("latent_std", "control_std"):
        if (std := floats[field]) is not None and (std < 0).any():
            fail(field, "holds negative numbers, which no standard deviation is")


def _sizes_path(shard: pathlib.Path) -> pathlib.Path:
    return shard.with_name(f"{shard.name}.buckets.npy")


def _read_sizes(directory: pathlib.Path, part: Part) -> np.ndarray:
    """int64[num_records, 2]: bucket (height, width) of every sample of a shard."""
    shard, histogram = part
    path = _sizes_path(directory / shard.file)
    try:
        sizes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}; write the shard {shard.file} again") from error
    if len(sizes) != shard.num_records or _histogram(sizes) != histogram:
        raise InputError(
            f"{directory / shard.file} holds {_histogram(sizes)} samples per bucket, not {dict(histogram)} as listed; "
            "list what write_shard returned for it last, or write it again"
        )
    return sizes


def _histogram(sizes: np.ndarray) -> dict[str, int]:
    buckets, counts = np.unique(sizes, axis=0, return_counts=True)
    return {bucket_name(bucket): int(count) for bucket, count in zip(buckets, counts, strict=True)}
