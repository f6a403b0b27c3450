"""The quickstart's data tool, on a small colour font built here, so that no machine needs an emoji font for it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from emoji_font import ABSENT, BLANK, CANDIDATES, CODE, FLAG, MONOCHROME, SMALL, TWINS, build_font
from owners import held_elsewhere
from PIL import Image

from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from tools import emoji
from tools import make_quickstart_data as quickstart


@pytest.fixture(scope="module")
def font_file(tmp_path_factory):
    return build_font(tmp_path_factory.mktemp("font") / "test.ttf")


@pytest.fixture(scope="module")
def font(font_file):
    return emoji.find_font(str(font_file))[0]


def run(*arguments):
    return quickstart.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory, font_file):
    out = tmp_path_factory.mktemp("data") / "quickstart"
    assert run("--out", out, "--num-glyphs", 30, "--size", 32, "--font", font_file) == 0
    return out


def test_candidates_are_captioned_once_each():
    captions = [caption for _, caption, _ in CANDIDATES]
    assert len(set(captions)) == len({character for character, _, _ in CANDIDATES}) == len(CANDIDATES) > 500
    assert captions[: len(emoji.FIRST)] == list(emoji.FIRST)
    assert {"blue heart", "red apple", "dog face"} <= set(captions[:8])
    # Cross-attention has no word order: two captions of the same words would be one caption with two pictures.
    assert len({tuple(sorted(caption.replace("-", " ").split())) for caption in captions}) == len(captions)
    assert all(len(caption.split()) <= emoji.MAX_NAME_WORDS for caption in captions)
    assert {label for _, _, label in CANDIDATES} == set(range(len(emoji.GROUPS)))


def test_choice_leaves_out_blank_monochrome_missing_and_twin_glyphs(font):
    captions = [glyph.caption for glyph in emoji.choose_glyphs(font, 20, 32)]
    assert TWINS[0] in captions
    assert not {TWINS[1], BLANK, MONOCHROME, ABSENT, SMALL} & set(captions)  # SMALL is faint: nearly all white
    assert len(set(captions)) == 20


def test_choice_is_sorted_by_group_and_smaller_choices_are_part_of_larger(font):
    few, many = (emoji.choose_glyphs(font, count, 32) for count in (10, 20))
    assert {glyph.caption for glyph in few} < {glyph.caption for glyph in many}
    assert [glyph.label for glyph in many] == sorted(glyph.label for glyph in many)


def test_too_few_glyphs(font):
    with pytest.raises(InputError, match=r"--num-glyphs 1000: the font has only 3\d distinct"):
        emoji.choose_glyphs(font, 1000, 32)


def test_render_is_upright_and_in_true_colours(font):
    tile = emoji.render(font, chr(CODE[FLAG]), 64).tolist()
    assert tile[16][16] == tile[16][48] == [255, 0, 0]
    assert (tile[48][16], tile[48][48]) == ([0, 255, 0], [0, 0, 255])


def test_render_fills_the_tile_but_for_the_margin(font):
    tile = emoji.render(font, chr(CODE["dog face"]), 64)
    assert tile.shape == (64, 64, 3) and tile.dtype == np.uint8
    framed = tile.copy()
    framed[2:62, 2:62] = 255
    assert (framed == 255).all()
    inner = tile[2:62, 2:62]
    assert np.all((inner < 250).any(axis=2).mean(axis=(0, 1)) > 0.95)


def test_render_keeps_small_glyphs_small_and_centred(font):
    rows, columns = np.nonzero((emoji.render(font, chr(CODE[SMALL]), 64) < 200).any(axis=2))
    for where in (rows, columns):
        assert np.ptp(where) + 1 == pytest.approx(60 / 5, abs=2)  # a fifth of the advance, in both directions
        assert where.mean() == pytest.approx(31.5, abs=1)


def test_render_of_what_is_not_there(font):
    for caption in (MONOCHROME, ABSENT):
        assert emoji.render(font, chr(CODE[caption]), 32) is None
    assert emoji.render(font, emoji.NOT_A_CHARACTER, 32) is None


def test_shards_hold_the_glyphs(data, font):
    glyphs = emoji.choose_glyphs(font, 30, 32)
    reader = ShardReader(data)
    manifest = reader.manifest
    assert (manifest.num_samples, manifest.num_classes) == (30, len(emoji.GROUPS))
    assert (manifest.autoencoder, manifest.text_encoder, manifest.latent_kind) == ("linear", "words", "plain")
    assert manifest.bucket_histogram == {"32x32": 30}
    assert (manifest.resolution, manifest.caption_cleaning, manifest.text_dtype) == (32, "none", "float32")
    autoencoder, words = load_autoencoder(data, manifest), load_text_encoder(data, manifest)
    assert manifest.latent_scale == pytest.approx(autoencoder.latent_scale)
    samples = [reader[index] for index in range(30)]
    for sample, glyph in zip(samples, glyphs, strict=True):
        assert (sample.caption, sample.label, sample.bucket) == (glyph.caption, glyph.label, (32, 32))
        assert sample.key == f"u{ord(glyph.character):05x}" and sample.latent_std is None
        text, length = words.encode([glyph.caption])
        (stored,) = sample.texts
        np.testing.assert_array_equal(stored.features, text[0, : length[0]])
    latents = np.stack([sample.latent_mean for sample in samples])
    assert np.std(latents * manifest.latent_scale) == pytest.approx(1.0, rel=1e-3)
    decoded = to_uint8(autoencoder.decode(latents))
    originals = np.stack([glyph.pixels for glyph in glyphs])
    assert quickstart.psnr(originals, decoded) > 15
    # Each decoded glyph is nearer to its own original than to any other.
    distance = np.abs(decoded[:, None].astype(int) - originals[None]).mean(axis=(2, 3, 4))
    assert distance.argmin(axis=1).tolist() == list(range(30))


def test_several_shards(tmp_path, font_file, monkeypatch):
    monkeypatch.setattr(quickstart, "RECORDS_PER_SHARD", 8)
    out = tmp_path / "data"
    assert run("--out", out, "--num-glyphs", 20, "--size", 32, "--font", font_file) == 0
    assert [shard.num_records for shard in ShardReader(out).manifest.shards] == [8, 8, 4]


def test_contact_sheet_shows_the_originals(data, font):
    with Image.open(data / "contact_sheet.png") as opened:
        sheet = np.asarray(opened)
    first = emoji.choose_glyphs(font, 30, 32)[0].pixels
    np.testing.assert_array_equal(sheet[6:38, 6:38], first)  # 4 pixels of frame, 2 around the tile
    assert not np.array_equal(sheet[6:38, 40:72], first)  # beside it, what the autoencoder keeps


def test_recipe_file_lists_what_was_chosen(data, font):
    recipe = json.loads((data / "quickstart.json").read_text(encoding="utf-8"))
    assert recipe["groups"] == list(emoji.GROUPS)
    assert [entry["caption"] for entry in recipe["glyphs"]] == [
        glyph.caption for glyph in emoji.choose_glyphs(font, 30, 32)
    ]
    assert all(CODE[entry["caption"]] == ord(entry["character"]) for entry in recipe["glyphs"])


def test_same_arguments_make_the_same_files(data, font_file, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    for out, seed in ((again, 0), (other, 1)):
        assert run("--out", out, "--num-glyphs", 30, "--size", 32, "--font", font_file, "--seed", seed) == 0

    def stored(directory):
        reader = ShardReader(directory)
        samples = [reader[i] for i in range(len(reader))]
        return [(s.key, s.latent_mean.tobytes(), s.texts[0].features.tobytes()) for s in samples]

    assert stored(again) == stored(data)
    assert [record[:2] for record in stored(other)] == [record[:2] for record in stored(data)]
    assert [record[2] for record in stored(other)] != [record[2] for record in stored(data)]


def test_second_run_changes_nothing(data, font_file, capsys, monkeypatch):
    before = {file.name: file.stat().st_mtime_ns for file in data.iterdir()}
    monkeypatch.setattr(quickstart, "make", None)
    assert run("--out", data, "--num-glyphs", 30, "--size", 32, "--font", font_file) == 0
    assert "already there, 30 glyphs" in capsys.readouterr().out
    # A font that is found, not named, may have been updated or removed since.
    monkeypatch.setattr(emoji, "FONT_DIRECTORIES", ())
    assert run("--out", data, "--num-glyphs", 30, "--size", 32) == 0
    assert {file.name: file.stat().st_mtime_ns for file in data.iterdir()} == before


def test_other_data_at_the_target(data, tmp_path, font_file, capsys):
    assert run("--out", data, "--num-glyphs", 29, "--size", 32, "--font", font_file) == 2
    assert "num_glyphs 30 there, 29 asked for" in capsys.readouterr().err
    other_font = build_font(tmp_path / "other.ttf", num_glyphs=41)
    assert run("--out", data, "--num-glyphs", 30, "--size", 32, "--font", other_font) == 2
    assert "font_sha256" in capsys.readouterr().err
    for recipe in (None, "{", "[]", '{"recipe": 3}'):
        out = tmp_path / "foreign"
        out.mkdir(exist_ok=True)
        if recipe is not None:
            (out / "quickstart.json").write_text(recipe)
        assert run("--out", out, "--font", font_file) == 2
        assert "is no data of the quickstart" in capsys.readouterr().err


def test_damaged_data_at_the_target(font_file, tmp_path, capsys):
    arguments = ("--num-glyphs", 20, "--size", 32, "--font", font_file)
    for name in ("shard-00000.array_record", "autoencoder.npz", "tokenizer.json", "manifest.json"):
        out = tmp_path / name
        assert run("--out", out, *arguments) == 0
        (out / name).unlink()
        capsys.readouterr()
        assert run("--out", out, *arguments) == 2
        assert name in capsys.readouterr().err


def test_font_search(font_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(emoji, "FONT_DIRECTORIES", (str(tmp_path / "absent"), str(tmp_path)))
    assert run("--out", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert "apt-get install fonts-noto-color-emoji" in error and "--font FILE" in error

    (tmp_path / "deep").mkdir()
    unusable = tmp_path / "deep" / "NotoColorEmoji.ttf"
    unusable.write_bytes(b"not a font")
    assert run("--out", tmp_path / "data") == 2
    assert str(unusable) in capsys.readouterr().err

    unusable.write_bytes(font_file.read_bytes())
    assert emoji.find_font(None)[1] == unusable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--font", "absent.ttf"], "--font absent.ttf: no such file"),
        (["--font", __file__], "no colour emoji"),
        (["--size", "40"], "--size 40: must be a multiple of 16"),
        (["--size", "16"], "--size 16"),
        (["--num-glyphs", "0"], "--num-glyphs 0"),
    ],
)
def test_bad_arguments_make_nothing(arguments, message, font_file, tmp_path, capsys):
    if "--font" not in arguments:
        arguments = [*arguments, "--font", str(font_file)]
    assert run("--out", tmp_path / "data", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out and not list(tmp_path.iterdir())


def test_a_seed_that_is_none_makes_nothing(font_file, tmp_path, capsys):
    for seed in ("-1", "1.5", "18446744073709551616", "x"):
        with pytest.raises(SystemExit, match="2"):
            run("--out", tmp_path / "data", "--font", str(font_file), f"--seed={seed}")
        assert "argument --seed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_command_line_prints_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tools.make_quickstart_data",
        "--out",
        str(tmp_path / "data"),
        "--font",
        "absent.ttf",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --font absent.ttf") and "Traceback" not in result.stderr


def test_font_of_this_machine_if_any():
    """Where an emoji font is installed it must yield the default data set; where none is, the message must say how."""
    try:
        font, _ = emoji.find_font(None)
    except InputError as error:
        assert "apt-get install" in str(error)
        return
    glyphs = emoji.choose_glyphs(font, 256, 64)
    assert set(emoji.FIRST[:8]) <= {glyph.caption for glyph in glyphs}
    by_caption = {glyph.caption: glyph.pixels.astype(int) for glyph in glyphs}
    red, _, blue = by_caption["blue heart"][20:40, 20:44].mean(axis=(0, 1))
    assert blue > red + 80
    apple = by_caption["red apple"]
    assert (apple[..., 0] - apple[..., 2] > 80).mean() > 0.3
    # The heart's point is below.
    ink = (by_caption["blue heart"].min(axis=2) < 200).sum(axis=1)
    assert ink[12:32].sum() > ink[32:52].sum()


def test_what_another_process_makes_is_left_alone(font_file, tmp_path, capsys):
    out = tmp_path / "deeper" / "quickstart"
    out.parent.mkdir()
    with held_elsewhere(out.parent / ".quickstart.lock"):
        assert run("--out", out, "--num-glyphs", 30, "--size", 32, "--font", font_file) == 2
    assert f"--out {out} is being written by another process" in capsys.readouterr().err
    assert not list(out.parent.iterdir())
    # And once it is gone, the same command works, and leaves no lock.
    assert run("--out", out, "--num-glyphs", 8, "--size", 32, "--font", font_file) == 0
    assert list(out.parent.iterdir()) == [out]
