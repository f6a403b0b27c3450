"""What the writer of feature shards refuses, and that nothing half-written is ever published."""

import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from shard_cases import FIELDS, assert_samples_equal, make_sample, write_set

from pixart_jax.data.shards.feature_shards import FeatureShardWriter, ShardReader
from pixart_jax.data.shards.records import Text
from pixart_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

WIDE = np.zeros((4, 6, 4), np.float16)


def texts(*features, **fields):
    return {"texts": tuple(Text("dot", array, **fields) for array in features)}


WITHOUT_TEXT = {"text_dim": 0, "max_text_tokens": 0, "text_dtype": "none", "num_classes": 3}
ONES = np.ones((1, 6), np.float32)


def filled(value):
    return np.full((4, 4, 4), value, np.float16)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        ({}, {"latent_mean": filled(np.nan)}, "'sample-0': latent_mean holds NaN"),
        ({}, {"latent_std": filled(np.inf)}, "'sample-0': latent_std holds NaN"),
        ({}, {"latent_std": filled(-1)}, "'sample-0': latent_std holds negative"),
        ({}, texts(-np.inf * ONES), r"'sample-0': texts\[0\] holds NaN"),
        ({"text_dtype": "bfloat16"}, texts((np.nan * ONES).astype(BFLOAT16)), r"'sample-0': texts\[0\] holds NaN"),
        ({"text_dtype": "int8"}, texts(ONES.astype(np.int8), scale=np.full(1, np.nan, np.float32)), "holds NaN"),
        ({}, {"latent_std": None}, "'sample-0': latent_std needs an array"),
        ({"latent_kind": "plain"}, {}, "'sample-0': latent_std must be None"),
        ({}, {"latent_mean": WIDE, "latent_std": WIDE}, r"'sample-0': latent_mean has shape \(4, 6, 4\)"),
        ({}, {"bucket": (32, 36)}, "'sample-0': bucket .* multiple of .* 16 pixels"),
        ({"patch_size": 4, "downsample": 16}, {}, "'sample-0': bucket .* multiple of .* 64 pixels"),
        ({"latent_channels": 3}, {}, "'sample-0': latent_mean has shape"),
        ({"resolution": 24}, {}, "'sample-0': bucket .*32x32 has more pixels than the square of resolution 24"),
        ({"text_dim": 7}, {}, r"'sample-0': texts\[0\] has width 6, the set's text_dim is 7"),
        ({}, texts(ONES, np.zeros((6, 6), np.float32)), r"'sample-0': texts\[1\] has 6 tokens, .* is 5"),
        ({}, texts(ONES.astype(BFLOAT16)), r"texts\[0\] has dtype bfloat16, the set's text_dtype is float32"),
        ({}, {"texts": ()}, "'sample-0': texts must hold at least one caption"),
        (WITHOUT_TEXT, {"label": 0}, r"'sample-0': texts must be empty in a set without text"),
        ({}, {"label": 0}, "'sample-0': label is 0, but the set has num_classes 0"),
        ({"num_classes": 3}, {}, "'sample-0': label is None"),
        ({"num_classes": 3}, {"label": 3}, "'sample-0': label is 3"),
    ],
)
def test_writer_refuses_what_contradicts_the_set(tmp_path, fields, changes, message):
    with pytest.raises(InputError, match=message):
        write_set(tmp_path / "set", [make_sample(0, **changes)], **fields)
    assert not list(tmp_path.iterdir())


def test_writer_goes_on_after_a_refused_sample(tmp_path):
    with FeatureShardWriter(tmp_path / "set", **FIELDS, records_per_shard=2) as writer:
        for i in range(5):
            with pytest.raises(InputError):
                writer.write(make_sample(i, label=3))
            writer.write(make_sample(i))
    reader = ShardReader(tmp_path / "set")
    assert [reader[i].key for i in range(len(reader))] == [f"sample-{i}" for i in range(5)]


def test_set_without_text(tmp_path):
    samples = [make_sample(i, texts=(), label=i) for i in range(3)]
    reader = ShardReader(write_set(tmp_path / "set", samples, **WITHOUT_TEXT))
    assert_samples_equal(reader[2], samples[2])
    assert reader[2].caption == ""


def test_writer_refuses_a_repeated_key(tmp_path):
    with pytest.raises(InputError, match="'sample-0': key was written before"):
        write_set(tmp_path / "set", [make_sample(0), make_sample(1), make_sample(0)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_channels", 0),
        ("latent_scale", 0.0),
        ("latent_scale", float("nan")),
        ("latent_kind", "mean"),
        ("downsample", 0),
        ("patch_size", 0),
        ("autoencoder", ""),
        ("text_encoder", ""),
        ("resolution", -1),
        ("caption_cleaning", "beta"),
        ("text_dim", -1),
        ("max_text_tokens", 0),
        ("max_text_tokens", -1),
        ("text_dtype", "float64"),
        ("text_dtype", "none"),
        ("num_classes", -1),
        ("records_per_shard", 0),
    ],
)
def test_writer_checks_its_fields_first(tmp_path, field, value):
    with pytest.raises(InputError, match=f"^{field} must"):
        FeatureShardWriter(tmp_path / "set", **(FIELDS | {field: value}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_dtype": "float32"}, "^text_dtype must be one of none with text_dim 0"),
        ({"max_text_tokens": 5}, "^max_text_tokens must"),
        ({"text_dim": 6}, "^max_text_tokens must"),
        ({"num_classes": 0}, "^num_classes must be above 0"),
    ],
)
def test_a_set_without_text_says_so_throughout(tmp_path, change, message):
    FeatureShardWriter(tmp_path / "set", **(FIELDS | WITHOUT_TEXT))
    with pytest.raises(InputError, match=message):
        FeatureShardWriter(tmp_path / "set", **(FIELDS | WITHOUT_TEXT | change))


def test_writer_leaves_an_existing_target_alone(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="exists already"):
        FeatureShardWriter(tmp_path / "set", **FIELDS)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_target_that_appears_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="exists already"), FeatureShardWriter(tmp_path / "set", **FIELDS) as writer:
        writer.write(make_sample(0))
        (tmp_path / "set").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert not list((tmp_path / "set").iterdir())


def test_exception_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureShardWriter(tmp_path / "set", **FIELDS) as writer:
        writer.write(make_sample(0))
        assert not (tmp_path / "set").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_empty_set_is_not_published(tmp_path):
    with pytest.raises(InputError, match="no sample was written"), FeatureShardWriter(tmp_path / "set", **FIELDS):
        pass
    assert not list(tmp_path.iterdir())


def test_extra_files_come_along(tmp_path):
    with FeatureShardWriter(tmp_path / "deep" / "set", **FIELDS) as writer:
        writer.write(make_sample(0))
        (writer.path / "tokenizer").mkdir()
        (writer.path / "tokenizer" / "vocabulary.txt").write_text("a")
    assert (tmp_path / "deep" / "set" / "tokenizer" / "vocabulary.txt").read_text() == "a"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]


KILLED_WRITER = """
import sys, time
from shard_cases import FIELDS, make_sample
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
with FeatureShardWriter(sys.argv[1], records_per_shard=2, **FIELDS) as writer:
    for i in range(5):
        writer.write(make_sample(i))
    print("written", flush=True)
    time.sleep(60)
"""


def test_killed_writer_leaves_no_target_and_the_next_one_succeeds(tmp_path):
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "set")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        assert process.stdout.readline() == b"written\n"
        with pytest.raises(InputError, match="being written by another process"):
            write_set(tmp_path / "set", 3)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == [".set.incomplete"]
    write_set(tmp_path / "set", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(ShardReader(tmp_path / "set")) == 3
