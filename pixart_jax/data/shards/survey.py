"""Everything that can be said of a set of feature shards by reading all of it once."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from array_record.python import array_record_module

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import BUCKETS_FILE, Manifest, Shard, bucket_name, read_buckets
from pixart_jax.data.shards.records import decode_sample
from pixart_jax.data.shards.shard_files import check_sample
from pixart_jax.errors import InputError

# Records that a thread reads before it reports.
_CHUNK = 512
_THREADS = 8
# Of keys that occur twice, so many are compared letter by letter.
_COMPARED = 100


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something damaged: the file, the record of it (None for all), and why."""

    file: str
    record: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.record is None else f' record {self.record}'}: {self.reason}"


@dataclasses.dataclass
class Survey:
    """What some records hold together. Per sample or caption it keeps no more than a few numbers.

    Attributes:
      keys, captions: 8-byte hashes, of each sample and of each caption.
      places: which sample of the set each is.
      captions_of: which sample each caption is of.
      record_bytes: of each sample.
      lengths: how many captions have 0, 1, ... tokens.
      captions_per_picture: how many samples have 0, 1, ... captions.
      buckets: samples per bucket.
      cells: latent cells; `latents` the sums over them of mean, mean² and std², f64[3, C], after the latent scale.
      problems: of records, in order.
    """

    keys: np.ndarray
    captions: np.ndarray
    places: np.ndarray
    captions_of: np.ndarray
    record_bytes: np.ndarray
    lengths: collections.Counter[int]
    captions_per_picture: collections.Counter[int]
    buckets: collections.Counter[tuple[int, int]]
    cells: int
    latents: np.ndarray
    problems: list[Problem]

    @classmethod
    def merge(cls, parts: Sequence[Survey]) -> Survey:
        """All of at least one."""
        values = {}
        for field in dataclasses.fields(cls):
            each = [getattr(part, field.name) for part in parts]
            if field.name in ("cells", "latents"):
                values[field.name] = sum(each)
            elif isinstance(each[0], np.ndarray):
                values[field.name] = np.concatenate(each)
            elif isinstance(each[0], collections.Counter):
                values[field.name] = sum(each, collections.Counter())
            else:
                values[field.name] = list(itertools.chain(*each))
        return cls(**values)

    def latent_moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of draws from the posteriors: mean and std; and the root mean square of the posteriors' own std; f64[C]."""
        mean, square, noise = self.latents / self.cells
        return mean, np.sqrt(np.maximum(square - mean**2, 0) + noise), np.sqrt(noise)


def survey_set(
    directory: str | os.PathLike, manifest: Manifest, report: Callable[[int, int], None] = lambda done, total: None
) -> Survey:
    """Reads and checks every record of a set: it must open, have its checksum, decode and fit the manifest, its bucket
    be the one listed in buckets.npy, and its key no other's. What is damaged is left out of the figures.

    Args:
      directory: of the set.
      manifest: of the set, from `read_manifest`.
      report: told from time to time how many records have been read, of how many that can be.
    """
    directory, first = pathlib.Path(directory), 0
    problems: list[Problem] = []
    work: list[tuple[int, Shard, range]] = []
    try:
        places = read_buckets(directory, manifest)
    except InputError as error:
        places = None
        problems.append(Problem(BUCKETS_FILE, None, _one_line(error)))
    for shard in manifest.shards:
        if problem := _file_problem(directory / shard.file, shard):
            held = f"samples {first} to {first + shard.num_records - 1} of the set cannot be read"
            problems.append(Problem(shard.file, None, f"{problem}; {held}"))
        else:
            starts = range(0, shard.num_records, _CHUNK)
            work += [(first, shard, range(start, min(start + _CHUNK, shard.num_records))) for start in starts]
        first += shard.num_records
    done, total = 0, sum(len(records) for *_, records in work)
    parts = [_survey_records(directory, manifest, 0, manifest.shards[0], range(0), None)]

    def survey_chunk(chunk: tuple[int, Shard, range]) -> Survey:
        return _survey_records(directory, manifest, *chunk, places)

    # Threads, because over a network reading is mostly waiting; processes would take seconds to start.
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        for part in pool.map(survey_chunk, work):
            parts.append(part)
            done += len(part.places) + len(part.problems)
            report(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    survey = Survey.merge(parts)
    survey.problems = [*problems, *survey.problems, *_repeated_keys(directory, manifest, survey)]
    return survey


def text_hash(text: str) -> int:
    """Eight bytes of hash, as in `Survey.keys` and `Survey.captions`."""
    # Half a surrogate pair, as some web pages have, is no UTF-8, but it can be stored.
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _survey_records(
    directory: pathlib.Path, manifest: Manifest, first: int, shard: Shard, records: range, places: np.ndarray | None
) -> Survey:
    """Reads and checks some records of a shard whose first sample is number `first` of the set.

    Args:
      places: the bucket that `buckets.npy` says for every sample of the set; None where it cannot be read.
    """
    reader = None
    sizes = list(manifest.buckets)
    keys, captions, numbers, captions_of, record_bytes = [], [], [], [], []
    lengths: collections.Counter[int] = collections.Counter()
    per_picture: collections.Counter[int] = collections.Counter()
    buckets: collections.Counter[tuple[int, int]] = collections.Counter()
    cells, latents, problems = 0, np.zeros((3, manifest.latent_channels)), []
    for position in records:
        if reader is None:
            reader = _open_shard(directory / shard.file)
        try:
            record = reader.read([position])[0]
            sample = decode_sample(record)
            check_sample(sample, manifest)
            if sample.bucket not in sizes:
                raise InputError(f"bucket {bucket_name(sample.bucket)} is not in the manifest's bucket_histogram")
            if places is not None and sizes[places[first + position]] != sample.bucket:
                listed = bucket_name(sizes[places[first + position]])
                raise InputError(f"has bucket {bucket_name(sample.bucket)}, buckets.npy says {listed}")
        except (InputError, RuntimeError, IndexError) as error:
            problems.append(Problem(shard.file, position, _one_line(error)))
            reader = None  # opened again for the next
            continue
        keys.append(text_hash(sample.key))
        numbers.append(first + position)
        record_bytes.append(len(record))
        captions += [text_hash(text.caption) for text in sample.texts]
        captions_of += [first + position] * len(sample.texts)
        lengths.update(len(text.features) for text in sample.texts)
        per_picture[len(sample.texts)] += 1
        buckets[sample.bucket] += 1
        mean = sample.latent_mean.reshape(-1, manifest.latent_channels).astype(np.float32) * manifest.latent_scale
        cells += len(mean)
        latents[0] += mean.sum(axis=0, dtype=np.float64)
        latents[1] += np.square(mean).sum(axis=0, dtype=np.float64)
        if sample.latent_std is not None:
            std = sample.latent_std.reshape(mean.shape).astype(np.float32) * manifest.latent_scale
            latents[2] += np.square(std).sum(axis=0, dtype=np.float64)
    return Survey(
        keys=np.array(keys, np.uint64),
        captions=np.array(captions, np.uint64),
        places=np.array(numbers, np.int64),
        captions_of=np.array(captions_of, np.int64),
        record_bytes=np.array(record_bytes, np.int64),
        lengths=lengths,
        captions_per_picture=per_picture,
        buckets=buckets,
        cells=cells,
        latents=latents,
        problems=problems,
    )


def _file_problem(path: pathlib.Path, shard: Shard) -> str | None:
    """What is wrong with a whole file; None for nothing."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != shard.num_bytes:
        return f"{'is truncated: it ' if size < shard.num_bytes else ''}has {size} bytes, not {shard.num_bytes}"
    try:
        count = _open_shard(path).num_records()
    except RuntimeError as error:
        return f"does not open: {_one_line(error)}"
    return None if count == shard.num_records else f"opens with {count} records, not {shard.num_records}"


def _open_shard(path: pathlib.Path) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _repeated_keys(directory: pathlib.Path, manifest: Manifest, survey: Survey) -> list[Problem]:
    """Samples whose key an earlier one has."""
    order = np.argsort(survey.keys, kind="stable")
    same = np.flatnonzero(survey.keys[order][1:] == survey.keys[order][:-1])
    ends = list(itertools.accumulate(shard.num_records for shard in manifest.shards))
    reader = ShardReader(directory)
    problems: list[Problem] = []
    for before, after in zip(survey.places[order[same]], survey.places[order[same + 1]], strict=True):
        number = int(np.searchsorted(ends, after, side="right"))
        shard = manifest.shards[number]
        key = reader[before].key if len(problems) < _COMPARED else None
        # Eight bytes of hash may agree by chance, so that what is shown to people is compared.
        if key is None or reader[after].key == key:
            reason = f"key {key!r} is that of sample {before} of the set too; keys must be unique"
            problems.append(Problem(shard.file, int(after) - ends[number] + shard.num_records, reason))
    return problems
