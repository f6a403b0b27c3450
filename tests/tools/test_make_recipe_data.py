"""The data of the recipe in miniature: five sets that agree with one another."""

import numpy as np
import pytest
from emoji_font import build_font
from owners import held_elsewhere

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder, load_text_encoder
from tools import make_recipe_data as recipe

NUM_GLYPHS = 16
SETS = ("dense", "terse", "held_out", "large", "large_held_out")


@pytest.fixture(scope="module")
def font_file(tmp_path_factory):
    return str(build_font(tmp_path_factory.mktemp("font") / "test.ttf"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, font_file):
    out = tmp_path_factory.mktemp("data") / "recipe"
    recipe.make(out, font_file, NUM_GLYPHS)
    return out


def samples(path):
    reader = ShardReader(path)
    return [reader[i] for i in range(len(reader))]


def test_what_is_held_out_is_new_as_a_whole_and_known_in_its_parts(data):
    train, held_out = ({s.key.rsplit("-", 1)[0] for s in samples(data / name)} for name in ("dense", "held_out"))
    assert len(train) == NUM_GLYPHS * 7 and len(held_out) == NUM_GLYPHS and not train & held_out
    for part in (0, 1):
        assert {key.split("-")[part] for key in held_out} <= {key.split("-")[part] for key in train}
    large, large_held_out = ({s.key.rsplit("-", 1)[0] for s in samples(data / n)} for n in ("large", "large_held_out"))
    assert (large, large_held_out) == (train, held_out)


def test_captions(data):
    dense, terse = samples(data / "dense"), samples(data / "terse")
    assert [s.key for s in dense] == [s.key for s in terse]
    for long, short in zip(dense, terse, strict=True):
        np.testing.assert_array_equal(long.latent_mean, short.latent_mean)
        assert long.caption.startswith(short.caption) or f" {short.caption} on a" in long.caption
        assert f"on a {long.key.split('-')[1]} ground" in long.caption
    places = {s.caption.rsplit(" ", 1)[1] for s in samples(data / "large")}
    assert places == {"ground", "left", "middle", "right", "top", "bottom"}


def test_sets_share_their_encoders(data):
    contents = {(data / name / file).read_bytes() for name in SETS for file in ("autoencoder.npz",)}
    assert len(contents) == 1
    manifest = ShardReader(data / "large").manifest
    words = load_text_encoder(data / "large", manifest)
    for name in SETS:
        for sample in samples(data / name)[:20]:
            text, length = words.encode([sample.caption])
            np.testing.assert_array_equal(sample.texts[0].features, text[0, : length[0]])


def test_large_canvases(data):
    reader = ShardReader(data / "large")
    decode = load_autoencoder(data / "large", reader.manifest).decode
    assert set(reader.manifest.bucket_histogram) == {f"{h}x{w}" for h, w in recipe.LARGE_BUCKETS}
    for sample in samples(data / "large"):
        height, width = sample.bucket
        assert height * width <= recipe.LARGE**2
        if sample.caption.endswith(("left", "top")):
            # The far end of the canvas is its ground.
            picture = decode(sample.latent_mean)
            far = picture[:, -16:] if width > height else picture[-16:]
            ground = np.array(recipe.GROUNDS[sample.key.split("-")[1]]) / 127.5 - 1
            assert np.abs(far - ground).mean() < 0.1


def test_what_another_process_makes_is_left_alone(font_file, tmp_path, capsys):
    out = tmp_path / "recipe"
    half = tmp_path / ".recipe.incomplete" / "dense" / "shard"
    half.parent.mkdir(parents=True)
    half.write_text("of another process")
    with held_elsewhere(tmp_path / ".recipe.lock"):
        assert recipe.main(["--out", str(out), "--font", font_file]) == 2
    assert f"--out {out} is being written by another process" in capsys.readouterr().err
    assert half.read_text() == "of another process" and not out.exists()


def test_second_run_changes_nothing_and_other_folders_are_left_alone(data, font_file, tmp_path, capsys):
    assert recipe.main(["--out", str(data), "--font", font_file]) == 0
    assert "already there" in capsys.readouterr().out
    (tmp_path / "mine.txt").write_text("precious")
    assert recipe.main(["--out", str(tmp_path), "--font", font_file]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_weights_to_align_with_are_looked_at_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "make", lambda *_: pytest.fail("the data are made first"))
    (tmp_path / "weights.pth").write_bytes(b"of no network")
    for name, said in (("weights.pth", "weights.pth is refused"), ("missing.pth", "missing.pth does not exist")):
        assert recipe.main(["--out", str(tmp_path / "new"), "--align-weights", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
