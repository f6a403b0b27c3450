"""`make extras` in miniature: every chapter with a few steps, on a small font, and what is done with its results."""

import json
import pathlib

import numpy as np
import pytest
from emoji_font import build_font
from owners import held_elsewhere
from PIL import Image

from pixart_jax.config import load_config, read_config_file
from pixart_jax.training.loop import train_and_evaluate
from tools import make_quickstart_data
from tools.emoji import Glyph
from tools.extras import command, dreambooth, edges, few_steps, one_step, style
from tools.extras.chapter import Chapter, Result

TINY = ("model.hidden_size=24", "model.depth=2", "model.num_heads=2", "model.scan_unroll=2", "train.num_steps=2",
        "train.log_every=2", "optimizer.warmup_steps=1", "data.batch_size=8",
        "adapter.controlnet.num_copies=1")  # fmt: skip


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
    """The folder of all chapters; the command was interrupted on its way, behind the LoRA's training."""
    arguments = [*made, "--out", str(tmp_path_factory.mktemp("out") / "extras")]
    with pytest.MonkeyPatch.context() as patch:
        # One picture at a time: one program draws all of them.
        for module, name, value in (
            (style, "HELD_OUT", 8), (dreambooth, "NUM_CANDIDATES", 3), (dreambooth, "NUM_SUBJECT", 1),
            (dreambooth, "NUM_OTHERS", 1), (edges, "NUM_POSES", 2),
            # Each number of steps of each sampler is a program of its own.
            (few_steps, "SAMPLERS", ("dpm-solver",)), (few_steps, "STEPS", (1, 2, 4, 5)),
            (few_steps, "REFERENCE_STEPS", 5),
            (one_step, "PAIRS", ("--num-pairs", "8", "--num-steps", "1", "--batch-size", "8")),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        with pytest.MonkeyPatch.context() as stop:
            stop.setattr(style.convert, "main", interrupt)
            assert command.main(arguments) == 130
        assert command.main(arguments) == 0
    return pathlib.Path(arguments[-1])


def interrupt(arguments):
    raise KeyboardInterrupt


def test_every_chapter_has_a_table_and_pictures(told):
    results = json.loads((told / "extras.json").read_text())
    assert list(results) == [chapter.name for chapter in command.CHAPTERS]
    text = (told / "extras.md").read_text()
    for chapter in command.CHAPTERS:
        assert f"## {chapter.title}\n" in text
        result = results[chapter.name]
        assert len({tuple(row) for row in result["rows"]}) == 1
        # How long the interrupted one took before is not known.
        assert ("seconds" in result) == ("processor_seconds" in result) == (chapter.name != "style")
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
    assert [row["retrieval@1, distance"] for row in found["rows"]] == [
        "dpm-solver",
        "lcm, not distilled",
        "lcm, distilled",
        "without error",
    ]
    # The reference is in no distance from itself, and the others are, if only in a small one of an untrained model.
    assert found["rows"][0]["5 steps"].endswith(", 0.0") and found["rows"][2]["5 steps"]
    # Without error one step is the whole way, and every further one has a noise of its own.
    assert found["rows"][3]["1 step"].endswith(", 0.0") and not found["rows"][3]["2 steps"].endswith(", 0.0")
    shares = [value for name, value in found["figures"].items() if name.endswith("share")]
    assert len(shares) == 3 and min(shares) > 0


def test_what_chapters_train_is_what_they_say(told):
    kinds = {path.parent.name: load_config(path.parent) for path in told.glob("*/*/config.json")}
    wanted = {"lora": "lora", "with_prior": "full", "without_prior": "full", "controlnet": "controlnet"}
    assert {name: kinds[name].adapter.kind for name in wanted} == wanted
    assert kinds["lora"].adapter.lora.rank == 4
    assert kinds["with_prior"].data.prior_source and not kinds["without_prior"].data.prior_source
    steps = [json.loads(line)["step"] for line in (told / "style/lora/metrics.jsonl").read_text().splitlines()]
    assert steps == [2]  # The second command found it trained.


def test_agreement_of_edges_is_of_pixels_beside_one_another():
    page = np.full((1, 32, 32, 3), 255, np.uint8)
    page[0, 8:24, 8:24] = (200, 30, 30)
    beside = edges.agreement(np.roll(page, 1, axis=2), page)
    away = edges.agreement(np.roll(page, 4, axis=2), page)
    shares = ["drawn edges that were asked for", "asked for and drawn", "F"]
    assert [edges.agreement(page, page)[name] for name in shares] == [beside[name] for name in shares] == [1, 1, 1]
    assert edges.agreement(page, page)["pixels between them"] == 0 < beside["pixels between them"] < 1
    # The horizontal sides lie on one another, the vertical ones four pixels apart.
    assert 0.4 < away["F"] < 0.8 and 1 < away["pixels between them"] < 2.5
    blank = np.full_like(page, 255)
    for pair in ((blank, page), (page, blank)):
        assert edges.agreement(*pair)["F"] == 0 and edges.agreement(*pair)["pixels between them"] == 32


def test_pictures_that_chapters_make():
    rng = np.random.default_rng(0)
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:48, 16:48] = rng.integers(0, 256, (32, 32, 3))
    shown = style.printed(np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
    np.testing.assert_array_equal(shown, [[16, 36, 120], [252, 236, 200]])
    for posed in (edges.posed(picture, rng) for _ in range(5)):
        # Whole, however it lies: as much ink as its size says, and none at the border.
        assert min(posed[[0, -1]].min(), posed[:, [0, -1]].min()) > 200
        assert 0.5**2 < np.mean(posed < 250) / np.mean(picture < 250) < 1.2
    seen = dreambooth.views(picture)
    assert len({view.tobytes() for view in seen}) == len(seen) == 4
    np.testing.assert_array_equal(seen[0], picture)
    known = np.stack([picture, 255 - picture])
    near, far = (
        Glyph("x", name, 0, pixels) for name, pixels in (("near", picture // 2 + 127), ("far", picture * 0 + 9))
    )
    assert dreambooth.least_alike([near, far, near], known).caption == "far"


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
    assert [result["rows"][0]["what"] for result in results.values()] == ["one", "two"]
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
