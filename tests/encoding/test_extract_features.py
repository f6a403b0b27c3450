"""Folders of pictures become feature shards: the same bytes after kills and from several processes, nothing lost."""

import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from classifier_weights import write_efficientnet
from forked import processes
from PIL import Image

from pixart_jax.data.buckets import nearest_bucket, training_buckets
from pixart_jax.data.decoding import decode, fit
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.picture_features import open_features
from pixart_jax.encoding.pretrained import Autoencoder, T5TextEncoder, local_mesh
from pixart_jax.files.locks import hold
from tools import extract_features

COLOURS = ["red", "green", "blue", "small", "brown"]
SIZES = [(300, 200), (200, 300), (256, 256), (420, 200), (70, 90)]


def picture(number):
    """A picture of its own size and colour gradient."""
    width, height = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    pixels = 255 * (rows * rng.random(3) + columns * rng.random(3)) / 2
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """22 pictures with captions, and one of each kind of item that must be skipped."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(22):
        name = folder / f"{'abc'[i % 3]}" / f"{i:02d}"
        name.parent.mkdir(exist_ok=True)
        picture(i).save(name.with_suffix(".png" if i % 2 else ".jpg"))
        name.with_suffix(".txt").write_text(f"A {COLOURS[i % 5]} picture, number {i}\n")
    whole = io.BytesIO()
    picture(2).save(whole, "JPEG")
    bomb = b"\x89PNG\r\n\x1a\n"
    for name, chunk in ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b"x")):
        bomb += struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
    bad = {
        "bomb.png": bomb,
        "empty.jpg": b"",
        "html.jpg": b"<html>not found</html>",
        "truncated.jpg": whole.getvalue()[:-900],
        "corrupt.png": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "no-caption.jpg": whole.getvalue(),
        "empty-caption.jpg": whole.getvalue(),
        "latin-caption.jpg": whole.getvalue(),
        "tiny.png": b"",
        "long.png": b"",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a caption")
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    Image.new("RGB", (1000, 100)).save(folder / "long.png")
    (folder / "no-caption.txt").unlink()
    (folder / "empty-caption.txt").write_text(" \n")
    (folder / "latin-caption.txt").write_bytes("Käse".encode("latin-1"))
    return folder


REASONS = {
    "bomb": "too-large", "empty": "not-an-image", "html": "not-an-image", "truncated": "damaged", "corrupt": "damaged",
    "no-caption": "caption-missing", "empty-caption": "caption-empty", "latin-caption": "caption-not-utf8",
    "tiny": "too-small", "long": "too-long",
}  # fmt: skip


def arguments(photos, weights, out, *more):
    base = ["--source", photos, "--out", out, "--checkpoint", weights, "--resolution", "256", "--items-per-shard", "5"]
    return [str(part) for part in (*base, "--batch-size", "4", *more)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extracted(photos, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "train"
    assert extract_features.main(arguments(photos, weights, out)) == 0
    return out


def test_what_is_stored_is_what_the_encoders_give(photos, weights, extracted):
    reader = ShardReader(extracted)
    samples = {sample.key: sample for sample in (reader[i] for i in range(len(reader)))}
    assert sorted(samples) == sorted(f"{'abc'[i % 3]}/{i:02d}" for i in range(22))
    assert len({sample.bucket for sample in samples.values()}) == len(SIZES)
    autoencoder = Autoencoder(weights / "vae", mesh=local_mesh())
    text_encoder = T5TextEncoder(weights / "text_encoder", max_tokens=300, mesh=local_mesh())
    for i in (0, 1, 3, 4, 21):
        sample = samples[f"{'abc'[i % 3]}/{i:02d}"]
        path = photos / f"{sample.key}{'.png' if i % 2 else '.jpg'}"
        image = decode(path.read_bytes(), max_pixels=10**8, min_side=1)
        bucket = nearest_bucket(training_buckets(256), image.height / image.width)
        assert sample.bucket == (bucket.height, bucket.width) and sample.image_size == (image.height, image.width)
        mean, std = autoencoder.encode(fit(image, bucket)[None], 1)
        np.testing.assert_allclose(sample.latent_mean, mean[0], atol=2e-3 * np.abs(mean).max())
        np.testing.assert_allclose(sample.latent_std, std[0], rtol=5e-3)
        assert sample.caption == f"A {COLOURS[i % 5]} picture, number {i}"
        text, length = text_encoder.encode([sample.caption])
        np.testing.assert_allclose(sample.texts[0].values(), text[0, : length[0]], rtol=0.01, atol=1e-3)


def test_the_counts_add_up(photos, extracted, capsys):
    manifest = json.loads((extracted / "manifest.json").read_text())
    rows = [json.loads(line) for line in (extracted / "skipped.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == REASONS
    assert all(len(row["message"]) > 10 for row in rows)
    assert manifest["num_samples"] == 22 and sum(manifest["skipped"].values()) == len(REASONS)
    assert manifest["num_samples"] + sum(manifest["skipped"].values()) == len(list(photos.rglob("*.[jp][pn]g")))
    assert "10 items skipped" in extract_features.summary(extracted)


def run(*argv):
    """In a process that a server of forks starts, with everything imported."""
    sys.exit(extract_features.main(list(argv)))


def test_killed_at_random_moments_it_ends_with_the_same_bytes(photos, weights, extracted, tmp_path):
    def start(out):
        process = processes.Process(target=run, args=arguments(photos, weights, out))
        process.start()
        return process

    start(tmp_path / "compiles").join()
    begin = time.perf_counter()
    start(tmp_path / "whole").join()
    seconds = time.perf_counter() - begin
    expected = contents(extracted)
    assert contents(tmp_path / "compiles") == contents(tmp_path / "whole") == expected
    rng, kills = random.Random(0), 0
    while kills < 4:
        process = start(tmp_path / "train")
        process.join(rng.uniform(0.2, 0.8) * seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:  # Done before all kills are spent: once more from the start.
            assert contents(tmp_path / "train") == expected
            shutil.rmtree(tmp_path / "train")
    if not (tmp_path / "train").exists():
        start(tmp_path / "train").join()
    assert contents(tmp_path / "train") == expected
    assert not list(tmp_path.glob(".*"))


def test_two_processes_write_the_same_set(photos, weights, extracted, tmp_path):
    shared = [*arguments(photos, weights, tmp_path / "train"), "--process-count=2"]
    both = [processes.Process(target=run, args=[*shared, f"--process-index={i}"]) for i in (1, 0)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert contents(tmp_path / "train") == contents(extracted)


def test_a_run_is_gone_on_with_as_it_was_begun(photos, weights, tmp_path, capsys):
    out = tmp_path / "train"
    assert extract_features.main([*arguments(photos, weights, out), "--process-count=2"]) == 0
    assert "complete when the others are done" in capsys.readouterr().out and not out.exists()
    assert extract_features.main([*arguments(photos, weights, out), "--min-side=100"]) == 2
    error = capsys.readouterr().err
    assert "was begun otherwise" in error and "min_side: 64, now 100" in error
    assert extract_features.main(arguments(photos, weights, out)) == 0
    assert extract_features.main(arguments(photos, weights, out)) == 2
    assert "exists already" in capsys.readouterr().err


def test_several_resolutions_and_int8_in_one_pass(photos, weights, extracted, tmp_path):
    out = tmp_path / "sets"
    assert (
        extract_features.main([*arguments(photos, weights, out), "--resolution", "256", "512", "--text-dtype=int8"])
        == 0
    )
    assert sorted(path.name for path in out.iterdir()) == ["256", "512", "recipe.json", "skipped.jsonl"]
    before, small, large = (ShardReader(path) for path in (extracted, out / "256", out / "512"))
    assert len(before) == len(small) == len(large)
    for i in range(len(small)):
        assert before[i].key == small[i].key == large[i].key
        np.testing.assert_array_equal(before[i].latent_mean, small[i].latent_mean)
        assert np.prod(large[i].bucket) > 3.5 * np.prod(small[i].bucket)
        exact, rounded = before[i].texts[0].values(), small[i].texts[0].values()
        cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
        assert cosine.min() > 0.999


def test_class_labels_for_the_first_stage(photos, weights, tmp_path):
    out = tmp_path / "classes"
    argv = ["--source", f"classes:{photos}", "--out", out, "--vae", weights / "vae", "--resolution", "256", "--labels"]
    assert extract_features.main([str(part) for part in argv]) == 0
    reader = ShardReader(out)
    assert reader.manifest.num_classes == 3 and reader.manifest.text_dim == 0
    assert {reader[i].label for i in range(len(reader))} == {0, 1, 2}
    assert all("abc"[reader[i].label] == reader[i].key[0] for i in range(len(reader)))
    assert reader.manifest.align == "none" and reader[0].align is None


def test_features_to_be_aligned_with(photos, weights, tmp_path, capsys):
    """In every sample, of the pixels that were encoded."""
    network = write_efficientnet(tmp_path / "lite0.pth")
    out, labels = tmp_path / "classes", ["--labels", "--align", "efficientnet-lite0"]
    argv = ["--source", f"classes:{photos}", "--out", out, "--vae", weights / "vae", "--resolution", "256", *labels]
    assert extract_features.main([str(part) for part in argv]) == 2
    assert "--align and --align-weights go together" in capsys.readouterr().err
    assert extract_features.main([str(part) for part in (*argv, "--align-weights", network)]) == 0
    assert (
        f"--align: {49 * 1280 * 2:,} bytes of efficientnet-lite0:lite0 to a square picture" in capsys.readouterr().err
    )
    reader = ShardReader(out)
    assert (reader.manifest.align, reader.manifest.align_dim) == ("efficientnet-lite0:lite0", 1280)
    features = open_features("efficientnet-lite0", network)
    for i in (0, 7):
        sample = reader[i]
        number = int(sample.key[-2:])
        path = photos / f"{sample.key}{'.png' if number % 2 else '.jpg'}"
        image = decode(path.read_bytes(), max_pixels=10**8, min_side=1)
        pixels = fit(image, nearest_bucket(training_buckets(256), image.height / image.width))
        np.testing.assert_array_equal(sample.align, features(pixels[None])[0])


@pytest.mark.parametrize(
    "change,message",
    [
        (["--source", "nowhere"], "no source of pictures"),
        (["--checkpoint", "nowhere"], "nowhere/vae/config.json"),
        (["--labels"], "has no class labels"),
        (["--process-index=2"], "--process-index 2 of --process-count 1"),
        (["--caption-weights=prompt"], "must be FIELD=NUMBER"),
    ],
)
def test_what_is_refused(photos, weights, tmp_path, capsys, change, message):
    assert extract_features.main([*arguments(photos, weights, tmp_path / "out"), *change]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def bad_photos(folder):
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"no picture")
        (folder / f"{i}.txt").write_text("a caption")
    return folder


def test_a_source_of_nothing_but_bad_items(weights, tmp_path, capsys):
    photos = bad_photos(tmp_path / "photos")
    assert extract_features.main(arguments(photos, weights, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "not one of 3 items could be used; {'not-an-image': 3} were skipped, such as 0: " in error
    assert str(tmp_path / ".out.incomplete") in error


def mend_captions(photos):
    for i in range(3):
        (photos / f"{i}.txt").write_text("a caption")


def mend_pictures(photos):
    for i in range(3):
        picture(i).save(photos / f"{i}.jpg")


def mend_the_list(photos):
    records = [{"path": f"{i}.jpg", "prompt": f"number {i}"} for i in range(3)]
    (photos / "list.json").write_text(json.dumps(records))


@pytest.mark.parametrize("mend", [mend_captions, mend_pictures, mend_the_list])
def test_what_failed_is_tried_again_when_it_was_mended(weights, tmp_path, capsys, mend):
    photos = bad_photos(tmp_path / "photos")
    source = photos
    if mend is not mend_pictures:
        mend_pictures(photos)
    if mend is mend_captions:
        for path in photos.glob("*.txt"):
            path.unlink()
    if mend is mend_the_list:
        source = photos / "list.json"
        source.write_text(json.dumps([{"path": f"{i}.jpg"} for i in range(3)]))
    argv = arguments(source, weights, tmp_path / "out")
    assert extract_features.main(argv) == extract_features.main(argv) == 2
    mend(photos)
    assert extract_features.main(argv) == 0
    assert len(ShardReader(tmp_path / "out")) == 3 and not (tmp_path / "out/skipped.jsonl").read_text()


def hold_and_wait(path, ready, done):
    with hold(path, "--out"):
        ready.set()
        done.wait(60)


@pytest.mark.parametrize("lock", ["0-of-1", "1-of-2"])
def test_a_second_writer_is_refused(photos, weights, tmp_path, capsys, lock):
    locks = tmp_path / ".out.incomplete/locks"
    locks.mkdir(parents=True)
    ready, done = processes.Event(), processes.Event()
    process = processes.Process(target=hold_and_wait, args=(locks / lock, ready, done))
    process.start()
    assert ready.wait(60)
    assert extract_features.main(arguments(photos, weights, tmp_path / "out")) == 2
    assert "is being written by another process" in capsys.readouterr().err
    done.set()
    process.join()
