"""Feature trees of the reference's tools become feature shards without being encoded again."""

import itertools
import json
import os
import signal
import sys
import threading
import time

import data.test_reference_features as cases
import ml_dtypes
import numpy as np
import pytest
from forked import processes
from watching import files_below

from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import make_iterator
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding import reference
from pixart_jax.encoding.engine import extract
from pixart_jax.encoding.reference import ReferenceUnits
from pixart_jax.errors import InputError
from tools import extract_features

LENGTHS = [1, 7, 120, 30, 12, 5, 9]


def records(count=7):
    return [cases.record(f"{i % 3}/{i}.png", i, height=600 + i, width=800) for i in range(count)]


def square(number, dtype=np.float32, side=32):
    return cases.posterior(number, dtype, side, side)


def alpha_tree(folder):
    """Squares of 256 px, as α's single-scale tool writes them."""
    tree = cases.Tree(folder)
    tree.alpha(records(), LENGTHS)
    for i, item in enumerate(records()):
        np.save(tree.latents / item["path"].replace("/", "_").replace(".png", ".npy"), square(i))
    return tree


@pytest.fixture
def tree(tmp_path):
    return alpha_tree(tmp_path)


def units(tree, resolution=256, family="alpha", text_dtype="float32", **more):
    return ReferenceUnits(
        tree.open(),
        resolution,
        family=family,
        text_dtype=text_dtype,
        text_dim=cases.TEXT_DIM,
        num_threads=2,
        about={},
        **({"items_per_unit": 3} | more),
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_changed_but_the_padding_and_the_precision(tree, tmp_path):
    assert extract(units(tree), tmp_path / "train")
    reader = ShardReader(tmp_path / "train")
    assert len(reader) == len(LENGTHS) and len(reader.manifest.shards) == 3
    for i, length in enumerate(LENGTHS):
        sample, z = reader[i], square(i)
        assert (sample.key, sample.bucket, sample.image_size) == (f"{i % 3}/{i}.png", (256, 256), (600 + i, 800))
        np.testing.assert_array_equal(sample.latent_mean, np.moveaxis(z[:4], 0, -1).astype(np.float16))
        np.testing.assert_array_equal(sample.latent_std, np.moveaxis(z[4:], 0, -1).astype(np.float16))
        (text,) = sample.texts
        np.testing.assert_array_equal(text.features, cases.embedding(i, 120)[0, :length])
        assert text.caption == f"a photo, {i}"  # "A photo, 3", cleaned as α's are


@pytest.mark.parametrize("family,scale,tokens", [("alpha", 0.18215, 120), ("sigma", 0.13025, 300)])
def test_the_manifest_is_the_familys(tree, tmp_path, family, scale, tokens):
    extract(units(tree, family=family, text_dtype="bfloat16"), tmp_path / "train")
    reader = ShardReader(tmp_path / "train")
    manifest = reader.manifest
    assert (manifest.latent_scale, manifest.max_text_tokens, manifest.caption_cleaning) == (scale, tokens, family)
    assert (manifest.autoencoder, manifest.text_encoder, manifest.latent_kind) == ("vae", "t5", "mean_std")
    assert (manifest.text_dtype, manifest.text_dim, manifest.num_classes) == ("bfloat16", cases.TEXT_DIM, 0)
    assert reader[3].caption == {"alpha": "a photo, 3", "sigma": "A photo, 3"}[family]
    expected = cases.embedding(3, 120)[0, : LENGTHS[3]].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(reader[3].texts[0].features, expected)


def test_int8_text_has_a_scale_per_token(tree, tmp_path):
    extract(units(tree, text_dtype="int8"), tmp_path / "train")
    for i, sample in enumerate(ShardReader(tmp_path / "train")[i] for i in range(len(LENGTHS))):
        exact = cases.embedding(i, 120)[0, : LENGTHS[i]]
        assert sample.texts[0].features.dtype == np.int8
        step = np.abs(exact).max(axis=1, keepdims=True) / 127
        assert (np.abs(sample.texts[0].values() - exact) <= 0.501 * step).all()


def test_multi_scale_latents_keep_their_buckets_and_train(tmp_path):
    tree = cases.Tree(tmp_path)
    tree.sigma(records(3), [3, 300, 12])
    shapes = [(32, 32), (44, 22), (24, 40)]  # 352×176 is the bucket 2.0 of 256 px, 192×320 is 0.6
    for i, (h, w) in enumerate(shapes):
        np.save(tree.latents / f"{i}.npy", cases.posterior(i, np.float16, h, w))
    extract(units(tree, family="sigma"), tmp_path / "train")
    reader = ShardReader(tmp_path / "train")
    assert [reader[i].bucket for i in range(3)] == [(8 * h, 8 * w) for h, w in shapes]
    spec = BatchSpec(
        batch_size=3, num_tokens=256, patch_size=2, latent_channels=4, position_base=16, position_scale=0.5,
        max_text_tokens=300, text_dim=cases.TEXT_DIM, text_dtype="float32",
    )  # fmt: skip
    batches = make_iterator([(tmp_path / "train", 1.0)], spec, seed=0, shuffle=False)
    batch = next(batches)
    batches.close()
    assert batch["num_tokens"].tolist() == [256, 242, 240] and batch["text_length"].tolist() == [3, 300, 12]
    np.testing.assert_allclose(batch["aspect_ratio"][:, 0], [1.0, 2.0, 0.6])
    z = np.moveaxis(cases.posterior(2, np.float16, 24, 40)[:4], 0, -1)
    first = batch["tokens"][2, 0].reshape(2, 2, 4)  # noise of the posterior on top, of a deviation below 1
    assert np.abs(first - 0.13025 * z[:2, :2]).max() < 0.13025 * 6 and np.abs(first).max() > 0


def test_what_does_not_fit_is_skipped_and_counted(tree, tmp_path):
    name = [item["path"].replace("/", "_").replace(".png", "") for item in records()]
    np.save(tree.latents / f"{name[1]}.npy", cases.posterior(1))  # 32×48 px
    np.savez(tree.text / f"{name[2]}.npz", caption_feature=cases.embedding(2, 121))
    (tree.latents / f"{name[3]}.npy").unlink()
    np.save(tree.latents / f"{name[4]}.npy", cases.with_(square(4), (2, 3, 4), 1e5))
    (tree.text / f"{name[5]}.npz").write_bytes(b"")
    unit = units_that_look_at(tree, 1)  # else the long text would be taken for Σ's
    extract(unit, tmp_path / "train")
    rows = [json.loads(line) for line in (tmp_path / "train" / "skipped.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == {
        "1/1.png": "wrong-bucket", "2/2.png": "too-many-tokens", "0/3.png": "missing-file", "1/4.png": "not-finite",
        "2/5.png": "damaged",
    }  # fmt: skip
    reader = ShardReader(tmp_path / "train")
    assert [reader[i].key for i in range(len(reader))] == ["0/0.png", "0/6.png"]
    assert sum(reader.manifest.skipped.values()) == 5
    messages = {row["reason"]: row["message"] for row in rows}
    assert "32x48 pixels are no bucket of resolution 256" in messages["wrong-bucket"]
    assert "121 tokens, and captions of alpha have at most 120; --family sigma" in messages["too-many-tokens"]
    assert "1e+05, which float16 cannot hold" in messages["not-finite"]


def units_that_look_at(tree, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_WHOLE", count)
        return units(tree)


def test_a_tree_of_another_kind_is_refused_before_work_starts(tree, tmp_path):
    with pytest.raises(InputError, match=r"256x256 pixels are no bucket of resolution 512; --resolution 256 has it"):
        units(tree, 512)
    with pytest.raises(InputError, match=r"none of the records looked at has a caption.*--caption-field"):
        ReferenceUnits(
            tree.open(caption_field="caption"),
            256,
            family="alpha",
            text_dtype="int8",
            text_dim=cases.TEXT_DIM,
            about={},
        )
    with pytest.raises(InputError, match=r"caption_feature is \(1, 120, 6\), not \(1, tokens, 7\)"):
        ReferenceUnits(tree.open(text_dim=7), 256, family="alpha", text_dtype="int8", text_dim=7, about={})
    for path in tree.text.iterdir():
        np.savez(path, caption_feature=cases.embedding(0, 300))
    with pytest.raises(InputError, match=r"300 tokens, .* alpha have at most 120; --family sigma has room"):
        units(tree)


# The command line, with features of T5's own width.


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "TEXT_DIM", 4096)
        return alpha_tree(tmp_path_factory.mktemp("wide"))


def arguments(tree, out, *more):
    base = ["--source", tree.list, "--out", out, "--resolution", "256", "--family", "alpha", "--items-per-shard", "2"]
    base += ["--reference-text", tree.text, "--reference-latents", tree.latents]
    return [str(part) for part in (*base, *more)]


def run(units, *argv):
    """In a process of its own, which after so many units waits for ever."""
    samples, read = ReferenceUnits.samples, itertools.count()

    def wait_or_read(self, items):
        if next(read) == units:
            threading.Event().wait()
        return samples(self, items)

    ReferenceUnits.samples = wait_or_read
    sys.exit(extract_features.main(list(argv)))


def test_killed_or_shared_between_processes_it_ends_with_the_same_bytes(wide, tmp_path):
    assert extract_features.main(arguments(wide, tmp_path / "whole")) == 0
    expected = contents(tmp_path / "whole")
    assert len(ShardReader(tmp_path / "whole")) == len(LENGTHS)

    process = processes.Process(target=run, args=(2, *arguments(wide, tmp_path / "killed")))
    process.start()
    while not files_below(tmp_path / ".killed.incomplete/units") and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob(".killed.incomplete/units/*")) and not (tmp_path / "killed").exists()
    assert extract_features.main(arguments(wide, tmp_path / "killed")) == 0
    assert contents(tmp_path / "killed") == expected

    shared = arguments(wide, tmp_path / "shared", "--process-count=2")
    both = [processes.Process(target=run, args=(-1, *shared, f"--process-index={i}")) for i in (1, 0)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert contents(tmp_path / "shared") == expected


@pytest.mark.parametrize(
    "change,message",
    [
        (["--vae", "weights/vae"], "--vae is for encoding pictures"),
        (["--checkpoint", "weights", "--labels", "--min-side=9"], "--min-side, --checkpoint, --labels is for encoding"),
        (["--resolution", "256", "512"], "a folder of latents is of one resolution"),
        (["--resolution", "512"], "--resolution 256 has it"),
        (["--source", "photos/"], "name the .json or .jsonl list"),
        (["--source", "none.json"], "cannot read the list none.json"),
        (["--reference-text", "nowhere"], "nowhere is no folder"),
        (["--caption-field", "propmt"], "name another (--caption-field)"),
        (["--num-threads", "0"], "--num-threads must be at least 1"),
    ],
)
def test_what_is_refused(wide, tmp_path, capsys, change, message):
    assert extract_features.main([*arguments(wide, tmp_path / "out"), *change]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option,message",
    [
        ("--family", "--family alpha or --family sigma"),
        ("--reference-text", "go together"),
        ("--reference-latents", "go together"),
    ],
)
def test_what_is_missing_is_refused(wide, tmp_path, capsys, option, message):
    argv = arguments(wide, tmp_path / "out")
    place = argv.index(option)
    assert extract_features.main(argv[:place] + argv[place + 2 :]) == 2
    assert message in capsys.readouterr().err


def test_a_caption_field_is_of_no_use_with_pictures(tmp_path, capsys):
    argv = ["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--resolution", "256", "--caption-field", "text"]
    assert extract_features.main(argv) == 2
    assert "--caption-field is for features that exist" in capsys.readouterr().err


def test_it_is_gone_on_with_under_the_same_settings_only(wide, tmp_path, capsys):
    out = tmp_path / "out"
    assert extract_features.main(arguments(wide, out, "--process-count=2")) == 0
    assert extract_features.main(arguments(wide, out, "--text-dtype=int8")) == 2
    assert "text_dtype: 'bfloat16', now 'int8'" in capsys.readouterr().err
    assert extract_features.main(arguments(wide, out)) == 0
    assert "7 samples in 4 shards" in capsys.readouterr().out
