"""`make gallery` in miniature: packages made here, a model of two steps, and what is shown of it. No network."""

import json
import shutil
import sys

import numpy as np
import pytest
import tiny_gallery
from PIL import Image

from pixart_jax.config import read_config_file
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.training.loop import train_and_evaluate
from tools import fluent_emoji, gallery, make_gallery_data, sample


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages") / "made"
    tiny_gallery.write_packages(folder)
    return folder


def make(out, packages, *more):
    return make_gallery_data.main(["--out", str(out), "--packages", str(packages), "--size", "32", *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory, packages):
    out = tmp_path_factory.mktemp("data") / "gallery"
    assert make(out, packages) == 0
    return out


def test_pictures_have_captions_tones_and_a_white_ground(packages):
    pictures = {picture.caption: picture for picture in fluent_emoji.read_pictures(packages, 32)}
    # No flag, no letter, no couple of two tones; files with and without -fe0f are found.
    assert len(pictures) == 2 + 2 * 6 and {"dog face", "rocket"} < pictures.keys()
    dark = pictures["waving hand: dark skin tone"]
    assert (dark.key, dark.subject, dark.tone, dark.label) == ("1f44b-1f3ff", "waving hand", 5, 1)
    assert dark.pixels.shape == (32, 32, 3) and (dark.pixels[:, :12] == 255).all() and dark.pixels[:, 20:].std() > 10
    assert [caption for caption, picture in pictures.items() if picture.held_out] == ["waving hand: light skin tone"]


def test_every_fourth_subject_gives_one_tone_each_equally_often():
    drawn = [(f"{i}-{tone}", "", f"subject {i}", tone, 0) for i in range(41) for tone in range(6)]
    drawn.append(("x", "", "only one tone", 1, 0))
    held_out = fluent_emoji._held_out(drawn)
    assert sorted(held_out)[:2] == [("subject 0", 1), ("subject 12", 4)] and len(held_out) == 11
    assert np.ptp(np.bincount([tone for _, tone in held_out])[1:]) <= 1


def test_sets_hold_what_they_should(data):
    readers = {name: ShardReader(data / name) for name in gallery.SETS}
    captions = {name: [reader[i].caption for i in range(len(reader))] for name, reader in readers.items()}
    assert captions["held_out"] == ["waving hand: light skin tone"] and captions["synonyms"] == ["puppy"]
    assert len(captions["train"]) == 13 and "waving hand: light skin tone" not in captions["train"]
    manifest = readers["synonyms"].manifest
    assert (manifest.text_encoder, manifest.autoencoder, manifest.num_classes) == ("minilm", "linear", 8)
    # The synonym's picture is the known caption's, and its features are its own word's.
    puppy, dog = readers["synonyms"][0], readers["train"][captions["train"].index("dog face")]
    np.testing.assert_array_equal(puppy.latent_mean, dog.latent_mean)
    text, length = load_text_encoder(data / "train", manifest).encode(["puppy"])
    np.testing.assert_allclose(puppy.texts[0].features, text[0, : length[0]], atol=1e-5)
    assert load_autoencoder(data / "train", manifest).channels == make_gallery_data.CHANNELS
    assert Image.open(data / "train" / make_gallery_data.CONTACT_SHEET_FILE).size[0] > 64


def test_data_that_are_there_are_kept_or_refused(data, packages, tmp_path, capsys):
    assert make(data, packages) == 0 and "nothing to do" in capsys.readouterr().out
    assert make(data, packages, "--size", "64") == 2
    assert "size 32 there, 64 asked for" in capsys.readouterr().err
    assert make(tmp_path, packages) == 2 and "is no data of the gallery" in capsys.readouterr().err
    damaged = shutil.copytree(data, tmp_path / "damaged")
    next((damaged / "train").glob("*.array_record")).unlink()
    assert make(damaged, packages) == 2 and ".array_record" in capsys.readouterr().err
    assert make(tmp_path / "new", packages, "--size", "40") == 2 and "multiple of 32" in capsys.readouterr().err


def test_a_package_that_is_missing_or_damaged_is_named(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(fluent_emoji.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"npm is not installed; run `npm pack .*fluent-emoji-3d@1.1.0` in "):
        fluent_emoji.fetch(tmp_path / "none")
    monkeypatch.setattr(fluent_emoji.shutil, "which", lambda name: sys.executable)
    failed = type("Done", (), {"returncode": 1, "stderr": "no route", "stdout": ""})
    monkeypatch.setattr(fluent_emoji.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(InputError, match=r"could not be fetched \(no route\); run `npm pack"):
        fluent_emoji.fetch(tmp_path / "none")
    fluent_emoji.fetch(packages)  # All there.
    broken = tmp_path / "broken"
    broken.mkdir()
    for package in (fluent_emoji.EMOJI, fluent_emoji.CAPTIONS, fluent_emoji.MINILM):
        (broken / package.file).write_bytes((packages / package.file).read_bytes()[:-400])
        with pytest.raises(InputError, match=r"damaged .*; delete it to have it fetched again"):
            fluent_emoji.read_pictures(broken, 32)
            fluent_emoji.read_minilm(broken, 8)
        (broken / package.file).write_bytes((packages / package.file).read_bytes())


def test_a_synonym_that_a_caption_holds_is_refused(packages, monkeypatch):
    monkeypatch.setattr(make_gallery_data, "SYNONYMS", {"rocket": "dog face"})
    with pytest.raises(InputError, match="hold rocket, which SYNONYMS takes for new"):
        make_gallery_data.sets_of(fluent_emoji.read_pictures(packages, 32))


@pytest.mark.parametrize(
    "caption,wanted",
    [
        ("rocket", ("rocket", "")),
        ("waving hand: medium-light skin tone", ("waving hand", "medium-light")),
        ("man: dark skin tone, beard", ("man: beard", "dark")),
    ],
)
def test_a_caption_is_a_subject_and_a_tone(caption, wanted):
    assert gallery.subject_and_tone(caption) == wanted


def test_measures_tell_subject_from_tone():
    captions = ["hand: light skin tone", "hand: dark skin tone", "dog face", "foot: light skin tone"]
    pictures = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    # The first as it should be, the second in the wrong tone, the synonym of the third, the fourth's tone alone.
    wanted = [captions[0], captions[1], "puppy", captions[3]]
    shown = gallery.Shown(wanted, pictures, pictures[[0, 0, 2, 0]])
    found = gallery.measure(shown, captions, gallery.small(pictures))
    assert found["captions"] == 4 and found["retrieval_at_1"] == 0.5 and found["retrieval_at_10"] == 1
    assert (found["right_subject"], found["right_tone"]) == (0.75, 0.75)


def test_pictures_are_compared_small():
    pictures = np.arange(2 * 128 * 128 * 3, dtype=np.uint8).reshape(2, 128, 128, 3)
    assert gallery.small(pictures).shape == (2, 64, 64, 3)
    assert gallery.small(pictures)[1, 3, 5, 2] == pictures[1, 6:8, 10:12, 2].mean()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    settings = (
        "model.hidden_size=24", "model.depth=1", "model.num_heads=2", "model.scan_unroll=1", "model.resolution=32",
        "model.text_dim=64", "data.batch_size=4", "train.num_steps=2", "train.log_every=1", "optimizer.warmup_steps=1",
        "sample.every=0", "sample.retrieval_captions=0", "sample.num_steps=2", f"data.source={data / 'train'}",
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("run") / "gallery"
    train_and_evaluate(read_config_file("gallery", [f"--config.{setting}" for setting in settings]), workdir)
    return workdir


def test_a_run_draws_free_prompts_and_all_sets(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "NUM_DRAWN", 3)
    out = tmp_path / "shown"
    assert gallery.main(["--checkpoint", str(run), "--data", str(data), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["pictures"] == 14 and [results[name]["captions"] for name in gallery.SETS] == [3, 1, 1]
    assert all((out / f"{name}.png").is_file() for name in gallery.SETS)
    # From the run alone, whose folder holds the text encoder.
    drawn = tmp_path / "puppy.png"
    assert sample.main(["--checkpoint", str(run), "--prompt", "rocket puppy", "--out", str(drawn)]) == 0
    assert gallery.main(["--checkpoint", str(run), "--data", str(tmp_path), "--out", str(out)]) == 2
