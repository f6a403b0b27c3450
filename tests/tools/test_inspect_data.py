"""tools.inspect_data on small sets: what it says of a whole set, and that it finds every kind of damage."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from pixart_jax.data.shards import survey
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.manifest import Manifest, read_manifest
from pixart_jax.data.shards.records import Sample, Text, encode_sample, quantize
from pixart_jax.data.shards.shard_files import assemble, write_shard
from pixart_jax.errors import InputError
from pixart_jax.figures import data_set as charts
from pixart_jax.models.linear_autoencoder import LinearAutoencoder
from tools.inspect_data import main

FIELDS = {
    "latent_channels": 4,
    "latent_scale": 0.5,
    "latent_kind": "mean_std",
    "downsample": 8,
    "patch_size": 2,
    "resolution": 0,
    "autoencoder": "none",
    "text_encoder": "none",
    "caption_cleaning": "none",
    "text_dim": 6,
    "max_text_tokens": 5,
    "text_dtype": "int8",
}
BUCKETS = ((32, 32), (16, 64), (16, 32), (64, 16))


def text(caption: str, length: int) -> Text:
    rng = np.random.default_rng(length)
    return Text(caption, *quantize(rng.standard_normal((length, 6)).astype(np.float32)))


def make_sample(index: int, *, bucket: tuple[int, int] = (32, 32), **changes) -> Sample:
    rng = np.random.default_rng(index)
    shape = (bucket[0] // 8, bucket[1] // 8, 4)
    sample = Sample(
        key=f"sample-{index}",
        image_size=bucket,
        bucket=bucket,
        latent_mean=rng.standard_normal(shape).astype(np.float16),
        latent_std=rng.uniform(0.5, 1.5, shape).astype(np.float16),
        texts=(text(f"caption {index}", 1 + index % 5),),
    )
    return dataclasses.replace(sample, **changes)


def write_set(directory, samples, **fields):
    with FeatureShardWriter(directory, **(FIELDS | {"records_per_shard": 4} | fields)) as writer:
        for sample in samples:
            writer.write(sample)
    return directory


def rich_sample(index: int):
    """Of four aspect ratios, with one to three captions in int8 of one to five tokens."""
    texts = tuple(text(f"caption {index} of {number}", 1 + (index + number) % 5) for number in range(1 + index % 3))
    return make_sample(index, bucket=BUCKETS[index % 4], texts=texts)


@pytest.fixture
def rich(tmp_path):
    """Directory of 24 samples in six shards, whose latents need a scale of about 0.65 and have 0.5."""
    samples = [rich_sample(i) for i in range(24)]
    return write_set(tmp_path / "rich", samples)


def replace_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_whole_set(rich, capsys):
    (rich / "skipped.jsonl").write_text('{"key": "a", "reason": "too-small", "message": ""}\n' * 3)
    assert main([str(rich), "--num-pictures=9"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^text_dtype +int8$", said, re.M)
    assert re.search(r"^ +16×64 +0\.25 +6 +25\.00%$", said, re.M)
    assert re.search(r"^bytes per record( +[\d,.]+){4}$", said, re.M)
    assert re.search(r"^caption tokens +1 +3 +[\d.]+ +5$", said, re.M)
    assert "captions per picture: 1 of 8, 2 of 8, 3 of 8\n" in said
    assert re.search(r"^ +3  too-small$", said, re.M)
    assert "bucket(s) have fewer than 10 samples, and show them again and again: 16x32, 16x64, 32x32, 64x16" in said
    assert "whole: 24 of 24 records" in said
    # 9 pictures in two rows below the heading; --vae, which would decode them, is named.
    assert "false colours" in said
    with Image.open(rich / "inspection" / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * 208
        assert 2 * 208 < sheet.height < 3 * 208 + 36
    with Image.open(rich / "inspection" / "histograms.png") as image:
        assert image.size == (1600, 900)
    # What is written into the set does not disturb it.
    assert main([str(rich)]) == 0


def test_figures_are_those_of_the_samples(rich):
    manifest = read_manifest(rich)
    told = []
    found = survey.survey_set(rich, manifest, lambda done, total: told.append((done, total)))
    samples = [rich_sample(i) for i in range(24)]
    assert not found.problems
    assert told[-1] == (24, 24)
    assert found.buckets == dict.fromkeys(BUCKETS, 6)
    assert found.captions_per_picture == {1: 8, 2: 8, 3: 8}
    lengths = [len(text.features) for sample in samples for text in sample.texts]
    assert dict(found.lengths) == {n: lengths.count(n) for n in range(1, 6)}
    assert found.record_bytes.tolist() == [len(encode_sample(sample)) for sample in samples]
    # The moments of draws, from draws.
    rng = np.random.default_rng(0)
    draws = [
        (s.latent_mean + s.latent_std * rng.standard_normal((200, *s.latent_mean.shape))).reshape(-1, 4) * 0.5
        for s in samples
    ]
    mean, std, noise = found.latent_moments()
    np.testing.assert_allclose(mean, np.concatenate(draws).mean(axis=0), atol=0.01)
    np.testing.assert_allclose(std, np.concatenate(draws).std(axis=0), rtol=0.01)
    stds = np.concatenate([s.latent_std.reshape(-1, 4).astype(np.float64) for s in samples]) * 0.5
    np.testing.assert_allclose(noise, np.sqrt((stds**2).mean(axis=0)), rtol=1e-5)


def flip_a_byte(directory, file: str, key: str):
    path = directory / file
    data = bytearray(path.read_bytes())
    place = data.index(f'"{key}"'.encode()) + 2
    data[place] ^= 1
    path.write_bytes(data)


def test_damaged_record_and_truncated_shard(rich, capsys):
    flip_a_byte(rich, "shard-00001.array_record", "sample-6")
    shard = rich / "shard-00003.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    (rich / "shard-00004.array_record").unlink()
    assert main([str(rich)]) == 1
    said = capsys.readouterr().out
    assert "DAMAGED: 3 problem(s); 15 of 24 records read" in said
    assert re.search(r"^  shard-00001.array_record record 2: .*(hash mismatch|checksum)", said, re.M)
    assert re.search(r"^  shard-00003.array_record: is truncated.*samples 12 to 15 of the set", said, re.M)
    assert re.search(r"^  shard-00004.array_record: is missing; samples 16 to 19 of the set", said, re.M)


def test_nothing_readable(rich, capsys):
    for shard in rich.glob("*.array_record"):
        shard.write_bytes(b"")
    assert main([str(rich)]) == 1
    said = capsys.readouterr().out
    assert "DAMAGED: 6 problem(s); 0 of 24 records read" in said
    assert not (rich / "inspection").exists()


def test_records_that_do_not_fit_the_manifest(rich, capsys):
    replace_manifest(rich, max_text_tokens=4)
    places = np.load(rich / "buckets.npy")
    places[[0, 1]] = places[[1, 0]]
    np.save(rich / "buckets.npy", places)
    assert main([str(rich)]) == 1
    said = capsys.readouterr().out
    assert "shard-00000.array_record record 0: has bucket 32x32, buckets.npy says 16x64" in said
    assert "'sample-4': texts[0] has 5 tokens, the set's max_text_tokens is 4" in said
    (rich / "buckets.npy").unlink()
    assert main([str(rich)]) == 1
    assert "buckets.npy: " in capsys.readouterr().out


def test_repeated_keys_across_shards(tmp_path, capsys):
    """The writer refuses them, but shards that are written apart may have them."""
    (tmp_path / "parts").mkdir()
    manifest = Manifest(**FIELDS)
    parts = [
        write_shard(tmp_path / "parts" / f"{number}.array_record", [make_sample(i) for i in indices], manifest)
        for number, indices in enumerate([(0, 1, 2), (3, 4, 1, 5)])
    ]
    assemble(tmp_path / "parts", tmp_path / "set", manifest, parts)
    assert main([str(tmp_path / "set")]) == 1
    said = capsys.readouterr().out
    assert "DAMAGED: 1 problem(s)" in said
    assert "1.array_record record 2: key 'sample-1' is that of sample 1 of the set too" in said


def test_equal_hashes_are_not_equal_keys(rich, monkeypatch):
    monkeypatch.setattr(survey, "text_hash", lambda text: 7)
    found = survey.survey_set(rich, read_manifest(rich))
    assert set(found.keys) == {7}
    assert not found.problems


def test_warnings(tmp_path, capsys):
    samples = [make_sample(i, texts=(text("stock photo" if i % 2 else f"{i}", 5 if i < 3 else 2),)) for i in range(12)]
    directory = write_set(tmp_path / "set", samples, latent_scale=0.13)
    assert main([str(directory)]) == 0
    said = capsys.readouterr().out
    assert "25.0% of captions have all 5 tokens" in said
    assert "50.0% of captions are not unique" in said
    assert "most often, 6 times: 'stock photo'" in said
    std, wanted = map(float, re.search(r"have std ([\d.]+),.*\(a scale of ([\d.]+) would", said).groups())
    assert 0.13 / std == pytest.approx(wanted, rel=0.01)
    assert "bucket(s) have fewer" not in said
    # At the scale it names, and with nothing else to say, there is no warning.
    samples = [make_sample(i, texts=(text(f"caption {i}", 2),)) for i in range(12)]
    directory = write_set(tmp_path / "good", samples, latent_scale=wanted)
    assert main([str(directory)]) == 0
    assert "warning:" not in capsys.readouterr().out


def test_linear_autoencoder_decodes(tmp_path, capsys):
    """A picture of one colour stays of that colour on the sheet, with its caption below."""
    rng = np.random.default_rng(0)
    pictures = np.tanh(rng.standard_normal((8, 32, 32, 3)).astype(np.float32))
    red = np.broadcast_to(np.float32([1, -1, -1]), (16, 64, 3))
    autoencoder = LinearAutoencoder.fit(np.concatenate([pictures, np.tile(red, (1, 2, 1))[None, :, :32].repeat(2, 1)]))
    fields = {
        "autoencoder": "linear",
        "latent_kind": "plain",
        "latent_channels": 12,
        "latent_scale": autoencoder.latent_scale,
    }
    latents = autoencoder.encode(red).astype(np.float32)
    sample = make_sample(0, bucket=(16, 64), latent_mean=latents, latent_std=None)
    directory = write_set(tmp_path / "set", [sample], **fields)
    assert main([str(directory)]) == 2
    assert "no linear autoencoder there" in capsys.readouterr().err
    autoencoder.save(directory / "autoencoder.npz")
    assert main([str(directory), f"--out={tmp_path / 'looks'}"]) == 0
    assert not (directory / "inspection").exists()
    with Image.open(tmp_path / "looks" / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    # A 208 by 52 picture, centred in its tile.
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=-1) < 60)
    rows, columns = np.nonzero(is_red)
    assert 0.95 * 208 * 52 <= is_red.sum() <= 208 * 52
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (52, 208)
    assert (pixels[rows.max() + 80 :].sum(axis=-1) < 200).any(), "the caption is black"
    # One grey picture has latents without any spread.
    sample = make_sample(0, latent_mean=np.zeros((4, 4, 12), np.float32), latent_std=None)
    autoencoder.save(write_set(tmp_path / "grey", [sample], **fields) / "autoencoder.npz")
    assert main([str(tmp_path / "grey")]) == 0
    assert "have std 0.000, training wants about 1: is it" in capsys.readouterr().out
    assert main([str(directory), "--vae=somewhere"]) == 2
    assert "--vae somewhere" in capsys.readouterr().err


class StubAutoencoder:
    """In place of `pretrained.Autoencoder`: pictures of the first channel, in grey."""

    latent_channels, latent_scale = 4, 0.5

    def __init__(self, directory, **options):
        pass

    def decode(self, latents):
        return np.repeat(np.repeat(np.tile(latents[..., :1], 3), 8, axis=1), 8, axis=2)


def test_vae_gets_the_stored_latents(tmp_path, monkeypatch, capsys):
    """Unscaled, each of its own shape."""
    monkeypatch.setattr("pixart_jax.encoding.pretrained.Autoencoder", StubAutoencoder)
    levels = (-0.9, -0.5, 0.3, 0.7)
    samples = []
    for i, (bucket, level) in enumerate(zip(BUCKETS, levels, strict=True)):
        latents = np.full((bucket[0] // 8, bucket[1] // 8, 4), level, np.float16)
        samples.append(make_sample(i, bucket=bucket, latent_mean=latents))
    directory = write_set(tmp_path / "set", samples, autoencoder="vae")
    assert main([str(directory), "--vae=there"]) == 0
    assert "decoded by there" in capsys.readouterr().out
    with Image.open(directory / "inspection" / "contact_sheet.png") as sheet:
        found = dict(zip(*np.unique(np.asarray(sheet)[..., 0], return_counts=True), strict=True))
    for level, area in zip(levels, (208 * 208, 208 * 52, 208 * 104, 52 * 208), strict=True):
        assert found[round((np.float16(level) + 1) * 127.5)] == pytest.approx(area, rel=0.03)
    monkeypatch.setattr(StubAutoencoder, "latent_scale", 0.13025)
    assert main([str(directory), "--vae=there"]) == 2
    assert "its latent_scale is 0.13025, the set's 0.5" in capsys.readouterr().err


def test_false_colours(tmp_path):
    """Each picture its own, on one scale for all: red above the mean of the first channel, cyan below."""
    samples = []
    for i, (bucket, level) in enumerate([((32, 32), 1.0), ((16, 64), -1.0)]):
        latents = np.zeros((bucket[0] // 8, bucket[1] // 8, 4), np.float16)
        latents[..., 0] = level
        samples.append(make_sample(i, bucket=bucket, latent_mean=latents))
    directory = write_set(tmp_path / "set", samples)
    assert main([str(directory)]) == 0
    with Image.open(directory / "inspection" / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    # The middles of the two tiles, below the heading.
    left, right = pixels[36 + 12 + 104, [12 + 104, 12 + 224 + 104]]
    assert left[0] > left[1] + 40
    assert right[0] < right[1] - 40


def test_caption_that_is_no_utf_8(tmp_path, capsys):
    samples = [make_sample(i, texts=(text("half a pair \ud83d", 2),)) for i in range(10)]
    assert main([str(write_set(tmp_path / "set", samples))]) == 0
    assert r"10 times: 'half a pair \ud83d'" in capsys.readouterr().out


def test_set_without_text(tmp_path, capsys):
    samples = [make_sample(i, texts=(), label=i % 2) for i in range(10)]
    fields = {"text_dim": 0, "max_text_tokens": 0, "text_dtype": "none", "num_classes": 2}
    assert main([str(write_set(tmp_path / "set", samples, **fields))]) == 0
    assert "caption tokens" not in capsys.readouterr().out


def test_folder_that_cannot_be_made(rich, capsys):
    (rich / "file").write_text("")
    assert main([str(rich), f"--out={rich / 'file'}"]) == 2
    assert "is no folder; name another" in capsys.readouterr().err


def test_a_seed_that_is_none_is_refused(tmp_path, capsys):
    for seed in ("-1", "1.5", "18446744073709551616", "x"):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path), f"--seed={seed}"])
        assert "argument --seed" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--num-pictures=0"], []])
def test_nothing_to_look_at(tmp_path, capsys, options):
    assert main([str(tmp_path), *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_charts_need_a_sample(tmp_path):
    none = np.zeros(0)
    figures = charts.DataFigures(
        buckets={}, caption_lengths=none, captions_per_picture=none, record_bytes=none, latent_mean=none,
        latent_std=none,
    )  # fmt: skip
    with pytest.raises(InputError, match="at least one sample"):
        charts.data_png(tmp_path / "charts.png", "", figures)
