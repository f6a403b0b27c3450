"""`make extras` in miniature: every chapter with a few steps, on a small font, and what is done with its results."""

import json

import numpy as np
import pytest
from emoji_font import build_font
from owners import held_elsewhere
from PIL import Image

from pixart_jax.config import read_config_file
from pixart_jax.training.loop import train_and_evaluate
from tools import make_quickstart_data
from tools.extras import command, few_steps, one_step
from tools.extras.chapter import Chapter, Result

TINY = ("model.hidden_size=24", "model.depth=2", "model.num_heads=2", "model.scan_unroll=2", "train.num_steps=2",
        "train.log_every=2", "optimizer.warmup_steps=1", "data.batch_size=8")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Arguments of a tiny model, its data and its font."""
    folder = tmp_path_factory.mktemp("extras")
    font = build_font(folder / "test.ttf")
    data = ["--out", str(folder / "data"), "--num-glyphs", "10", "--size", "32", "--font", str(font)]
    assert make_quickstart_data.main(data) == 0
    own = (
        "sample.num_steps=2",
        "model.resolution=32",
        f"data.source={folder / 'data'}",
        "sample.every=0",
        "sample.retrieval_captions=0",
    )
    train_and_evaluate(read_config_file("quickstart", [f"--config.{s}" for s in (*TINY, *own)]), folder / "base")
    settings = [word for setting in (*TINY, "model.resolution=32") for word in ("--set", setting)]
    return ["--data", str(folder / "data"), "--base", str(folder / "base"), "--font", str(font), *settings]


@pytest.fixture(scope="module")
def told(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "extras"
    with pytest.MonkeyPatch.context() as patch:
        # Each number of steps of each sampler is a program of its own.
        for name, value in {"SAMPLERS": ("dpm-solver",), "STEPS": (1, 2, 4, 5), "REFERENCE_STEPS": 5}.items():
            patch.setattr(few_steps, name, value)
        few = ("--num-pairs", "8", "--num-steps", "1", "--batch-size", "8")
        patch.setattr(one_step, "PAIRS", few)
        assert command.main([*made, "--out", str(out)]) == 0
    return out


def test_every_chapter_has_a_table_and_pictures(told):
    results = json.loads((told / "extras.json").read_text())
    assert list(results) == [chapter.name for chapter in command.CHAPTERS]
    text = (told / "extras.md").read_text()
    for chapter in command.CHAPTERS:
        assert f"## {chapter.title}\n" in text
        result = results[chapter.name]
        assert len({tuple(row) for row in result["rows"]}) == 1 and result["seconds"] > 0
        assert all(np.isfinite(value) for value in result["figures"].values())
        for name in result["pictures"]:
            assert f"({chapter.name}/{name})" in text and name.startswith("extras_")
            assert np.asarray(Image.open(told / chapter.name / name)).std() > 0


def test_inpainting_changes_nothing_outside_the_mask(told):
    drawn, pasted, alone = json.loads((told / "extras.json").read_text())["inpainting"]["rows"]
    given, kept = list(drawn)[1], list(drawn)[3]
    assert pasted[given] == 0 and pasted[kept] > 0
    assert drawn[kept] <= 1 and drawn[given] == pytest.approx(alone[given], abs=1)


def test_few_steps_are_compared_with_the_models_own_pictures(told):
    found = json.loads((told / "extras.json").read_text())["few_steps"]
    assert [row["retrieval@1, distance"] for row in found["rows"]] == ["dpm-solver", "lcm, distilled"]
    # The reference is in no distance from itself, and the others are, if only in a small one of an untrained model.
    assert found["rows"][0]["5 steps"].endswith(", 0.0") and found["rows"][1]["5 steps"]
    shares = [value for name, value in found["figures"].items() if name.endswith("share")]
    assert len(shares) == 3 and min(shares) > 0


def test_what_is_finished_stays_and_what_was_killed_goes_on(made, tmp_path, monkeypatch, capsys):
    runs = []

    def chapter(name):
        def run(desk):
            runs.append(name)
            (desk.folder / "left").touch()
            if len(runs) == 2:
                raise KeyboardInterrupt
            return Result([{"what": name, "share": 0.5}], {"count": 3}, {name: np.zeros((8, 8, 3), np.uint8)})

        return Chapter(name, name.title(), run)

    monkeypatch.setattr(command, "CHAPTERS", (chapter("one"), chapter("two")))
    arguments = [*made, "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 130 and runs == ["one", "two"]
    assert command.main(arguments) == 0 and runs == ["one", "two", "two"]
    assert command.main(arguments) == 0 and len(runs) == 3
    results = json.loads((tmp_path / "out/extras.json").read_text())
    # How long the second one took before it was interrupted is not known.
    assert results["one"]["seconds"] is not None and results["two"]["seconds"] is None
    assert "| two | 0.50 |" in (tmp_path / "out/extras.md").read_text()
    capsys.readouterr()

    assert command.main([*arguments, "--set", "sample.num_steps=3"]) == 2
    assert "made of another base or with other settings" in capsys.readouterr().err
    (tmp_path / "out/one/result.json").write_text("{}")
    assert command.main(arguments) == 2
    assert "is no chapter's result" in capsys.readouterr().err and len(runs) == 3
    with held_elsewhere(tmp_path / "out/.lock"):
        assert command.main(arguments) == 2
    assert "is being written by another process" in capsys.readouterr().err


def test_bad_input_is_told_before_work(made, tmp_path, capsys):
    def error_of(*arguments):
        assert command.main([*made, "--out", str(tmp_path / "out"), *map(str, arguments)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no such chapter; they are inpainting" in error_of("--only", "inpanting")
    assert "holds no data of the quickstart" in error_of("--data", tmp_path)
    assert "checkpoint" in error_of("--base", tmp_path)
    other_font = build_font(tmp_path / "other.ttf", num_glyphs=60)
    data = ["--out", str(tmp_path / "data"), "--num-glyphs", "11", "--size", "32", "--font", str(other_font)]
    assert make_quickstart_data.main(data) == 0
    assert "was not trained on --data" in error_of("--data", tmp_path / "data", "--font", other_font)
    assert "--font" in error_of("--font", tmp_path / "none.ttf")
