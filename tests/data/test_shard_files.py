"""Shards written one by one, and made one set."""

import dataclasses
import errno
import os
import pathlib
import resource
import zlib

import numpy as np
import pytest
from shard_cases import MANIFEST, assert_samples_equal, make_sample, spec_with

from pixart_jax.data.pipeline import check_sources
from pixart_jax.data.shards import shard_files
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import check_shards, read_buckets, read_manifest
from pixart_jax.data.shards.shard_files import assemble, write_shard
from pixart_jax.errors import InputError

SPLIT = ((5, 6, 7), (0,), (1, 2, 3, 4))  # parts of different lengths, not in the order of the set


def sample(index):
    return make_sample(index, bucket=(32, 32) if index % 3 else (16, 64))


def shard_name(number):
    return f"shard-{number}.array_record"


@pytest.fixture
def parts(tmp_path):
    """Directory of three shards, and what `write_shard` returned in the order of the set."""
    directory = tmp_path / "parts"
    directory.mkdir()
    written = [
        write_shard(directory / shard_name(number), map(sample, indices), MANIFEST)
        for number, indices in reversed(list(enumerate(SPLIT)))
    ]
    return directory, written[::-1]


class Killed(BaseException):
    pass


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_parts_become_a_set(parts, tmp_path):
    directory, written = parts
    (directory / "tokenizer.json").write_text("{}")
    target = tmp_path / "deep" / "set"
    target.parent.mkdir()
    manifest = assemble(directory, target, MANIFEST, written)
    assert names(tmp_path) == ["deep"]
    assert names(target) == ["buckets.npy", "manifest.json", *map(shard_name, range(3)), "tokenizer.json"]
    assert manifest == read_manifest(target)
    assert [shard.num_records for shard in manifest.shards] == [3, 1, 4]
    assert manifest.bucket_histogram == {"16x64": 3, "32x32": 5}
    check_shards(target, manifest)
    reader = ShardReader(target)
    order = [index for indices in SPLIT for index in indices]
    for place, index in enumerate(order):
        assert_samples_equal(reader[place], sample(index))
    sizes = [list(manifest.buckets)[place] for place in read_buckets(target, manifest)]
    assert sizes == [sample(index).bucket for index in order]


def test_part_says_what_it_holds(parts):
    directory, written = parts
    shard, histogram = written[2]
    path = directory / shard_name(2)
    data = path.read_bytes()
    ends = zlib.crc32(data[: 1 << 16] + data[-(1 << 16) :])
    assert dataclasses.astuple(shard) == (path.name, 4, len(data), ends)
    assert histogram == {"16x64": 1, "32x32": 3}


def test_bytes_depend_on_the_samples_alone(tmp_path):
    written = []
    for name, manifest in {
        "a": MANIFEST,
        "b": dataclasses.replace(MANIFEST, autoencoder="other"),
        "a ": MANIFEST,
    }.items():
        path = tmp_path / name.strip()
        write_shard(path, map(sample, range(40)), manifest)
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]
    write_shard(tmp_path / "c", map(sample, range(1, 41)), MANIFEST)
    assert (tmp_path / "c").read_bytes() != written[0]


def broken_samples(kind):
    yield sample(0)
    if kind == "raises":
        raise KeyboardInterrupt
    yield {"refused": make_sample(1, label=3), "repeated": sample(0)}[kind]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("raises", KeyboardInterrupt, None),
        ("refused", InputError, "'sample-1': label is 3"),
        ("repeated", InputError, "'sample-0': key was written before"),
    ],
)
def test_nothing_is_left_of_half_a_shard(tmp_path, kind, error, message):
    with pytest.raises(error, match=message):
        write_shard(tmp_path / "shard", broken_samples(kind), MANIFEST)
    assert not names(tmp_path)


def test_shard_without_samples(tmp_path):
    with pytest.raises(InputError, match="shard: a shard needs at least one sample"):
        write_shard(tmp_path / "shard", [], MANIFEST)
    assert not names(tmp_path)


def test_a_shard_is_replaced_whole(parts, tmp_path):
    directory, written = parts
    path = directory / shard_name(1)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, broken_samples("raises"), MANIFEST)
    assert path.read_bytes() == before
    (directory / f".{path.name}.tmp").write_bytes(b"what a killed process left")
    written[1] = write_shard(path, [sample(8), sample(0)], MANIFEST)
    manifest = assemble(directory, tmp_path / "set", MANIFEST, written)
    assert manifest.num_samples == 9
    assert not [name for name in names(tmp_path / "set") if name.startswith(".")]
    assert_samples_equal(ShardReader(tmp_path / "set")[3], sample(8))


def test_no_shard_stands_beside_the_buckets_of_another(parts, tmp_path, monkeypatch):
    directory, written = parts
    replace = pathlib.Path.replace

    def kill_at_the_shard(path, target):
        if path.name.endswith(".array_record.tmp"):
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", kill_at_the_shard)
        with pytest.raises(Killed):  # as many of each bucket, in another order
            write_shard(directory / shard_name(2), map(sample, (4, 2, 3, 1)), MANIFEST)
    with pytest.raises(InputError, match=r"shard-2\.array_record is missing"):
        assemble(directory, tmp_path / "set", MANIFEST, written)


def forget_buckets(directory, written):
    next(directory.glob("shard-1*.buckets.npy")).unlink()


def lose(directory, written):
    (directory / shard_name(1)).unlink()


def truncate(directory, written):
    os.truncate(directory / shard_name(1), 100)


def rewrite(directory, written):
    write_shard(directory / shard_name(1), [sample(1)], MANIFEST)


def repeat(directory, written):
    written.append(written[0])


def miscount(directory, written):
    written[1] = (dataclasses.replace(written[1][0], num_records=2), {"16x64": 2})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget_buckets, r"shard-1.*cannot be read: .*; write the shard shard-1\.array_record again"),
        (lose, r"shard-1\.array_record is missing; it holds samples 3 to 3"),
        (truncate, r"shard-1\.array_record is truncated"),
        (rewrite, r"shard-1\.array_record holds {'32x32': 1} samples per bucket, not {'16x64': 1} as listed"),
        (repeat, "a shard is listed twice"),
        (miscount, r"shard-1\.array_record holds {'16x64': 1} samples per bucket, not {'16x64': 2}"),
        (lambda directory, written: written.clear(), "no sample was written"),
    ],
)
def test_assemble_refuses(parts, tmp_path, damage, message):
    directory, written = parts
    damage(directory, written)
    with pytest.raises(InputError, match=message):
        assemble(directory, tmp_path / "set", MANIFEST, written)
    assert names(tmp_path) == ["parts"]


def test_assemble_refuses_parts_that_contradict_the_manifest(parts, tmp_path):
    with pytest.raises(InputError, match="bucket 16x64 has more pixels than the square of resolution 24"):
        assemble(parts[0], tmp_path / "set", dataclasses.replace(MANIFEST, resolution=24), parts[1])


def test_assemble_leaves_an_existing_target_alone(parts, tmp_path):
    (tmp_path / "set").mkdir()
    before = names(parts[0])
    with pytest.raises(InputError, match="set exists already"):
        assemble(parts[0], tmp_path / "set", MANIFEST, parts[1])
    assert names(parts[0]) == before


@pytest.mark.parametrize("step", ["write_manifest", "check_shards", "rename", "unlink"])
def test_a_killed_assembly_can_be_made_again(parts, tmp_path, monkeypatch, step):
    directory, written = parts
    target = tmp_path / "set"

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        owner = pathlib.Path if step in ("rename", "unlink") else shard_files
        real_unlink = pathlib.Path.unlink
        patch.setattr(owner, step, kill)
        if step == "unlink":  # of the small files only: write_atomically unlinks too
            patch.setattr(
                pathlib.Path,
                "unlink",
                lambda path, missing_ok=False: real_unlink(path, missing_ok) if missing_ok else kill(),
            )
        with pytest.raises(Killed):
            assemble(directory, target, MANIFEST, written)
    if step == "unlink":  # killed after the set was whole
        assert target.is_dir() and not directory.exists()
    else:
        assert not target.exists()
        assemble(directory, target, MANIFEST, written)
    check_shards(target, read_manifest(target))
    assert len(ShardReader(target)) == 8


def test_keys_across_shards_are_the_writers_promise(tmp_path):
    """Nothing that reads minds a key in two shards."""
    (tmp_path / "parts").mkdir()
    written = [write_shard(tmp_path / "parts" / shard_name(i), [sample(3)], MANIFEST) for i in range(2)]
    assemble(tmp_path / "parts", tmp_path / "set", MANIFEST, written)
    check_sources([(tmp_path / "set", 1.0)], spec_with(batch_size=1))
    reader = ShardReader(tmp_path / "set")
    assert reader[0].key == reader[1].key == "sample-3"


def test_more_buckets_than_a_byte_counts(tmp_path):
    manifest = dataclasses.replace(MANIFEST, latent_kind="plain")
    buckets = [(16, 16 * (300 - i)) for i in range(300)]
    samples = [make_sample(i, bucket=bucket, latent_std=None) for i, bucket in enumerate(buckets)]
    (tmp_path / "parts").mkdir()
    part = write_shard(tmp_path / "parts" / "shard", samples, manifest)
    manifest = assemble(tmp_path / "parts", tmp_path / "set", manifest, [part])
    places = read_buckets(tmp_path / "set", manifest)
    assert places.dtype == np.uint16 and places.tolist() == list(range(300))[::-1]


@pytest.mark.parametrize("limit", [100, 70_000, 200_000])
def test_a_full_disk_is_an_error_of_the_disk(tmp_path, limit):
    """A limit of the file's size stands for the disk; ArrayRecord itself raises a RuntimeError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*shard") as found:
            write_shard(tmp_path / "shard", map(sample, range(400)), MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.value.errno == errno.EFBIG
    assert not names(tmp_path)
