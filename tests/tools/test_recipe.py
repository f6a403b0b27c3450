"""The recipe in miniature, at a tenth of its size: its plan, and the chain of three stages with its report."""

import json

import numpy as np
import pytest
from emoji_font import build_font
from owners import held_elsewhere
from PIL import Image

from tools import make_recipe_data, recipe

TINY = ("model.hidden_size=24", "model.depth=2", "model.num_heads=2", "model.scan_unroll=2", "train.num_steps=4",
        "train.log_every=2", "optimizer.warmup_steps=1", "eval.every=4", "eval.num_samples=8", "eval.timesteps=500",
        "sample.num_steps=2", "data.batch_size=8")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    font = build_font(tmp_path_factory.mktemp("font") / "test.ttf")
    out = tmp_path_factory.mktemp("data") / "recipe"
    make_recipe_data.make(out, str(font), num_glyphs=8)
    return out


def test_plan(data, tmp_path):
    runs = recipe.plan(data, tmp_path, TINY)
    assert list(runs) == [arm.name for arm in recipe.ARMS]
    for name, run in runs.items():
        # Rounded to whole steps.
        if run.arm.same_compute_as:
            given = sum(runs[other].flops for other in run.arm.same_compute_as)
            assert abs(run.flops - given) <= run.step_flops / 2
            assert run.config.init_from == ""
        else:
            assert run.config.train.num_steps == 4
            assert run.config.init_from == (str(tmp_path / run.arm.after) if run.arm.after else "")
        assert run.workdir == tmp_path / name
    assert runs["terse"].config.data.source == f"{data}/terse"
    assert runs["terse"].config.eval.source == f"{data}/held_out"
    assert runs["full_adaln"].config.model.adaln == "full"
    assert runs["stage3"].config.data.source == f"{data}/large"
    differing = [name for name, run in runs.items() if run.config.init.reparameterize == "none"]
    assert differing == ["no_reparam"]


def test_three_stages_and_their_report(data, tmp_path, monkeypatch, capsys):
    chain = [arm for arm in recipe.ARMS if arm.name in ("stage1", "stage2", "stage3")]
    monkeypatch.setattr(recipe, "ARMS", chain)
    arguments = ["--data", str(data), "--workdir", str(tmp_path), *(word for s in TINY for word in ("--set", s))]
    assert recipe.main(arguments) == 0
    # Each starts where the last one ended.
    for before, after in (("stage1", "stage2"), ("stage2", "stage3")):
        started = json.loads((tmp_path / after / "init_from.json").read_text())
        assert before in json.dumps(started)
    lines = (tmp_path / "recipe.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [arm.about for arm in chain]
    cells = [float(line.split(" | ")[4]) for line in lines[2:]]
    assert all(0.5 < loss < 2 for loss in cells)
    for picture in ("recipe.png", "samples_small.png", "samples_large.png"):
        assert np.asarray(Image.open(tmp_path / picture)).std() > 0
    assert "100%" in capsys.readouterr().out


def test_settings_and_data_are_checked_first(data, tmp_path, capsys):
    assert recipe.main(["--data", str(tmp_path), "--workdir", str(tmp_path / "runs")]) == 2
    assert "make_recipe_data" in capsys.readouterr().err
    assert recipe.main(["--data", str(data), "--workdir", str(tmp_path / "runs"), "--set", "model.dept=3"]) == 2
    assert "config.model.depth" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_arms_start_from_arms_before_them():
    names = [arm.name for arm in recipe.ARMS]
    for i, arm in enumerate(recipe.ARMS):
        assert set(filter(None, (arm.after, *arm.same_compute_as))) <= set(names[:i])


def test_a_workdir_has_one_owner(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "ARMS", recipe.ARMS[:1])
    arguments = ["--data", str(data), "--workdir", str(tmp_path), *(word for s in TINY for word in ("--set", s))]
    with held_elsewhere(tmp_path / ".lock"):
        assert recipe.main(arguments) == 2
    assert f"--workdir {tmp_path} is being written by another process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
