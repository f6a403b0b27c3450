"""Writer, manifest and reader of feature shards, on real files."""

import json
import math
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from array_record.python import array_record_module
from shard_cases import FIELDS, assert_samples_equal, make_sample, write_set

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import check_shards, read_buckets, read_manifest, write_manifest
from pixart_jax.data.shards.records import Text, encode_sample, quantize
from pixart_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# --- manifest


def test_manifest_says_what_was_written(tmp_path):
    samples = [make_sample(i, bucket=(32, 32) if i % 3 else (16, 64), label=i) for i in range(10)]
    write_set(tmp_path / "set", samples, num_classes=10)
    manifest = read_manifest(tmp_path / "set")
    for field, value in FIELDS.items():
        assert getattr(manifest, field) == value
    assert (manifest.format_version, manifest.num_classes, manifest.num_samples) == (2, 10, 10)
    assert [shard.num_records for shard in manifest.shards] == [4, 4, 2]
    for shard in manifest.shards:
        assert (tmp_path / "set" / shard.file).stat().st_size == shard.num_bytes
    assert manifest.bucket_histogram == {"16x64": 4, "32x32": 6}
    assert manifest.buckets == {(16, 64): 4, (32, 32): 6}
    assert read_buckets(tmp_path / "set", manifest).tolist() == [0 if i % 3 == 0 else 1 for i in range(10)]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        *("buckets.npy", "manifest.json", "shard-00000.array_record", "shard-00001.array_record"),
        "shard-00002.array_record",
    ]


def test_missing_directory(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist.*tools\.extract_features"):
        read_manifest(tmp_path / "nowhere")


def test_empty_directory(tmp_path):
    with pytest.raises(InputError, match=r"is empty.*tools\.extract_features"):
        read_manifest(tmp_path)


def test_directory_without_manifest(tmp_path):
    (tmp_path / "picture.jpg").touch()
    with pytest.raises(InputError, match=r"has no manifest\.json.*tools\.extract_features"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("text_dim"), "field text_dim is missing"),
        (lambda raw: raw.update(surprise=1), "field surprise is unknown"),
        (lambda raw: raw.update(format_version=1), "format_version is 1, this code reads 2; make the set again"),
        (lambda raw: raw.update(format_version=3), "format_version is 3, .*update pixart_jax if a newer one"),
        (lambda raw: raw.pop("format_version"), "format_version is None"),
        (lambda raw: raw.update(text_dim="6"), "field text_dim must be of type int"),
        (lambda raw: raw.update(text_dim=True), "field text_dim must be of type int"),
        (lambda raw: raw.update(latent_scale="big"), "field latent_scale must be of type float"),
        (lambda raw: raw.update(latent_kind="odd"), "latent_kind must be one of"),
        (lambda raw: raw.update(caption_cleaning="odd"), "caption_cleaning must be one of alpha, sigma, none"),
        (lambda raw: raw.update(resolution=24), "bucket 32x32 has more pixels than the square of resolution 24"),
        (lambda raw: raw.pop("num_classes"), "field num_classes is missing"),
        (lambda raw: raw.update(shards=3), "field shards must be a list"),
        (lambda raw: raw.update(shards=[3]), r"shards\[0\] must be an object"),
        (lambda raw: raw["shards"][1].pop("num_bytes"), r"shards\[1\]: field num_bytes is missing"),
        (lambda raw: raw["shards"][1].update(x=1), r"shards\[1\]: field x is unknown"),
        (lambda raw: raw["shards"][0].update(file="../x"), "plain file name"),
        (lambda raw: raw["shards"].pop(), "num_samples is 6, but the records of shards add up to 4"),
        (lambda raw: raw.update(bucket_histogram=[]), "bucket_histogram must be an object"),
        (lambda raw: raw.update(bucket_histogram={"32": 6}), "bucket_histogram must map"),
        (lambda raw: raw.update(bucket_histogram={"32x32": 5}), "counts of bucket_histogram add up to 5"),
        (lambda raw: raw.update(bucket_histogram={"32x40": 6}), "bucket 32x40 is no multiple .* 16 pixels"),
        (lambda raw: raw.update(num_samples=0, shards=[], bucket_histogram={}), "holds no samples"),
    ],
)
def test_broken_manifest(tmp_path, change, message):
    path = write_set(tmp_path / "set", 6) / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as caught:
        read_manifest(tmp_path / "set")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_manifest_that_is_no_json_object(tmp_path, text):
    path = write_set(tmp_path / "set", 1) / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="JSON"):
        read_manifest(tmp_path / "set")


HUGE = 2**63
DIGITS = "9" * 5000


def shard_with(**changes):
    return lambda raw: raw["shards"][1].update(changes)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *((lambda raw, f=f, v=v: raw.update({f: v}), f) for f in (
            "latent_channels", "downsample", "patch_size", "resolution", "text_dim", "max_text_tokens", "num_classes",
            "num_samples",
        ) for v in (-1, HUGE, 10**400, 2.0, 1e30, None, [1])),
        *((lambda raw, v=v: raw.update(latent_scale=v), "latent_scale")
          for v in (math.nan, math.inf, -math.inf, 0, -1, 1e-320, 1e300, 10**400, True, None)),
        *((shard_with(**{f: v}), rf"shards\[1\]: field {f}")
          for f in ("num_records", "num_bytes") for v in (0, -4, HUGE, 4.0, "4", None)),
        *((shard_with(ends_crc32=v), r"shards\[1\]: field ends_crc32") for v in (-1, 2**32, 1.5, "0", False)),
        *((shard_with(file=v), r"shards\[1\]: field file")
          for v in ("", ".", "..", "/etc/passwd", "a/b", "a\0b", "\ud800", "x" * 300, 3, None)),
        (shard_with(file="shard-00000.array_record"), "shards: 'shard-00000.array_record' is listed twice"),
        *((lambda raw, n=n, c=c: raw.update(bucket_histogram={n: c}), "bucket_histogram")
          for n, c in (("32x32", -6), ("32x32", HUGE), ("32x32", 6.0), ("32x32", None), ("-32x32", 6),
                       ("32x" + DIGITS, 6), ("99999999999x16", 6), ("3²x32", 6), ("٣٢x32", 6), ("", 6))),
        *((lambda raw, v=v: raw.update(skipped=v), "skipped")
          for v in ({"a": -1}, {"a": HUGE}, {"a": 1.0}, {"a": None}, [], None)),
        *((lambda raw, f=f, v=v: raw.update({f: v}), f)
          for f in ("autoencoder", "text_encoder", "text_dtype", "latent_kind", "caption_cleaning")
          for v in ("", 3, None, {})),
        *((lambda raw, v=v: raw.update(format_version=v), "format_version")
          for v in (HUGE, 2.0, "2", True, None, DIGITS)),
    ],
)  # fmt: skip
def test_fields_of_a_manifest_have_types_and_ranges(one_manifest, tmp_path, change, field):
    raw = json.loads(one_manifest)
    change(raw)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=field) as caught:
        read_manifest(tmp_path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.fixture(scope="module")
def one_manifest(tmp_path_factory):
    return (write_set(tmp_path_factory.mktemp("one") / "set", 6) / "manifest.json").read_text()


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 100_000, '{"num_samples": ' + DIGITS + "}", "null", '"x"', "\0"])
def test_a_manifest_too_deep_or_too_long(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


# --- shards


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 0)])
def test_shards_of_one_size_that_were_swapped_are_noticed(pair, tmp_path):
    directory = write_set(tmp_path / "set", 12)
    first, second = (shard_path(directory, n) for n in pair)
    assert first.stat().st_size == second.stat().st_size
    check(directory)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(InputError, match="another shard's content is under its name") as caught:
        check(directory)
    assert first.name in str(caught.value) and second.name in str(caught.value)


@pytest.mark.parametrize("left", [(), (0,), (0, 1, 2)])
def test_sets_made_before_shards_had_a_checksum_open(left, tmp_path):
    directory = write_set(tmp_path / "set", 12)
    path = directory / "manifest.json"
    raw = json.loads(path.read_text())
    for number in left:
        del raw["shards"][number]["ends_crc32"]
    path.write_text(json.dumps(raw))
    check(directory)
    assert_samples_equal(ShardReader(directory)[11], make_sample(11))
    # And are written as they were read.
    manifest = read_manifest(directory)
    write_manifest(directory, manifest)
    assert json.loads(path.read_text()) == raw and read_manifest(directory) == manifest


def shard_path(directory, number):
    return directory / read_manifest(directory).shards[number].file


def check(directory):
    check_shards(directory, read_manifest(directory))


def test_whole_shards_pass(tmp_path):
    check(write_set(tmp_path / "set", 10))


def test_missing_shard(tmp_path):
    directory = write_set(tmp_path / "set", 10)
    shard_path(directory, 1).unlink()
    with pytest.raises(InputError, match=r"shard-00001.array_record is missing; it holds samples 4 to 7"):
        check(directory)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_shard(tmp_path, keep):
    directory = write_set(tmp_path / "set", 10)
    size = shard_path(directory, 2).stat().st_size
    os.truncate(shard_path(directory, 2), int(size * keep))
    with pytest.raises(InputError) as caught:
        check(directory)
    message = str(caught.value)
    assert (
        f"shard-00002.array_record is truncated: it has {int(size * keep)} bytes, the manifest says {size}" in message
    )
    assert "samples 8 to 9 of the set (records 0 to 1 of the file)" in message
    assert "Copy" in message


def test_every_bad_shard_is_named(tmp_path):
    directory = write_set(tmp_path / "set", 10)
    shard_path(directory, 0).unlink()
    with shard_path(directory, 2).open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"(?s)shard-00000.*shard-00002.*not the file the manifest describes"):
        check(directory)


def test_shard_of_the_right_size_without_its_footer(tmp_path):
    directory = write_set(tmp_path / "set", 10)
    path = shard_path(directory, 1)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)
    with pytest.raises(InputError, match=r"shard-00001\.array_record is damaged"):
        check(directory)


def test_shard_of_another_set(tmp_path):
    directory = write_set(tmp_path / "set", 8)
    raw = json.loads((directory / "manifest.json").read_text())
    raw["shards"][0]["num_records"], raw["shards"][1]["num_records"] = 3, 5
    (directory / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="opens with 4 records, the manifest says 3"):
        check(directory)


def damage_buckets(change):
    def damage(directory):
        np.save(directory / "buckets.npy", change(np.load(directory / "buckets.npy")))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / "buckets.npy").unlink(), "cannot be read: .*No such file"),
        (lambda directory: os.truncate(directory / "buckets.npy", 130), "cannot be read"),
        (lambda directory: os.truncate(directory / "buckets.npy", 0), "cannot be read"),
        (damage_buckets(lambda places: places[:-1]), "counts other samples per bucket than manifest.json"),
        (damage_buckets(lambda places: 1 - places), "counts other samples"),
        (damage_buckets(lambda places: places + np.uint8(1)), "counts other samples"),
        (damage_buckets(lambda places: places.astype(np.int64)), "must be a one-dimensional array of uint8"),
        (damage_buckets(lambda places: places[None]), "must be a one-dimensional array of uint8"),
        (damage_buckets(lambda places: places.astype(object)), "cannot be read: .*pickle"),
    ],
)
def test_damaged_buckets(tmp_path, damage, message):
    directory = write_set(tmp_path / "set", [make_sample(i, bucket=(32, 16 if i < 2 else 32)) for i in range(5)])
    damage(directory)
    with pytest.raises(InputError, match=message) as caught:
        check(directory)
    assert str(directory / "buckets.npy") in str(caught.value) and "copy it again" in str(caught.value)


# --- reader


def test_reader_returns_every_sample(tmp_path):
    samples = [make_sample(i, bucket=(32, 16 * (1 + i % 3))) for i in range(10)]
    reader = ShardReader(write_set(tmp_path / "set", samples))
    assert len(reader) == 10
    assert reader.manifest.buckets == {(32, 16): 4, (32, 32): 3, (32, 48): 3}
    for index in [9, 0, 4, 3, 8, 1, 2, 5, 6, 7]:
        assert_samples_equal(reader[index], samples[index])
    assert_samples_equal(reader[np.int64(5)], samples[5])
    for index in (-1, 10):
        with pytest.raises(IndexError):
            reader[index]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("bfloat16", Text("dot", np.ones((2, 6), BFLOAT16))),
        ("int8", Text("dot", *quantize(np.arange(12.0).reshape(2, 6)), weight=0.5)),
    ],
)
def test_plain_latents_and_two_texts_of_few_bytes(tmp_path, dtype, text):
    sample = make_sample(1, latent_std=None, texts=(text, text))
    reader = ShardReader(write_set(tmp_path / "set", [sample], latent_kind="plain", text_dtype=dtype))
    assert_samples_equal(reader[0], sample)


def test_reader_pickles_small_and_reads_again(tmp_path):
    reader = ShardReader(write_set(tmp_path / "set", 10))
    before = len(pickle.dumps(reader))
    assert_samples_equal(reader[7], make_sample(7))
    pickled = pickle.dumps(reader)
    assert len(pickled) == before
    assert_samples_equal(pickle.loads(pickled)[7], make_sample(7))
    assert repr(reader) == repr(pickle.loads(pickled)) == f"ShardReader({str(tmp_path / 'set')!r})"


def test_flipped_bits_in_a_shard_name_file_and_record(tmp_path):
    directory = write_set(tmp_path / "set", 10)
    path = shard_path(directory, 1)
    stored = make_sample(6).latent_mean.tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(stored) + 5] ^= 1
    path.write_bytes(data)
    # Of a shard this small the checksum of the ends covers all.
    with pytest.raises(InputError, match=r"shard-00001\.array_record .* begins or ends otherwise than written"):
        check(directory)
    reader = ShardReader(directory)
    with pytest.raises(InputError, match=r"shard-00001.array_record: record 2 \(sample 6 of the set\) cannot be read"):
        reader[6]
    for index in (5, 7, 0):
        assert_samples_equal(reader[index], make_sample(index))


def test_foreign_record_in_a_whole_file_names_file_and_record(tmp_path):
    directory = write_set(tmp_path / "set", 2)
    path = shard_path(directory, 0)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in (encode_sample(make_sample(0)), encode_sample(make_sample(1))[:-1]):
        writer.write(record)
    writer.close()
    reader = ShardReader(directory)
    assert_samples_equal(reader[0], make_sample(0))
    with pytest.raises(InputError, match=r"shard-00000.array_record: record 1 .*checksum"):
        reader[1]


def test_shard_that_vanishes_while_reading(tmp_path):
    directory = write_set(tmp_path / "set", 10)
    reader = ShardReader(directory)
    shard_path(directory, 2).unlink()
    with pytest.raises(InputError, match=r"shard-00002\.array_record: record 1"):
        reader[9]


def test_reading_needs_no_jax(tmp_path):
    code = (
        "import sys; from pixart_jax.data.shards.feature_shards import ShardReader; "
        f"ShardReader({str(write_set(tmp_path / 'set', 1))!r})[0]; "
        "print([m for m in ('jax', 'flax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
