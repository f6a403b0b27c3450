"""The recipe in miniature, at a tenth of its size: its plan, and the chain of three stages with its report."""

import dataclasses
import json

import numpy as np
import pytest
from classifier_weights import write_efficientnet
from emoji_font import build_font
from owners import held_elsewhere
from PIL import Image

from tools import make_recipe_data, recipe, savings_report
from tools.recipe_arms import PAPERS, SAVINGS, STAGES, plan

TINY = ("model.hidden_size=24", "model.depth=2", "model.num_heads=2", "model.scan_unroll=2", "train.num_steps=4",
        "train.log_every=2", "optimizer.warmup_steps=1", "eval.every=4", "eval.num_samples=8", "eval.timesteps=500",
        "sample.num_steps=2", "data.batch_size=8")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    font = build_font(tmp_path_factory.mktemp("font") / "test.ttf")
    out = tmp_path_factory.mktemp("data") / "recipe"
    make_recipe_data.make(out, str(font), num_glyphs=8)
    return out


def only(monkeypatch, comparison, arms):
    monkeypatch.setitem(recipe.COMPARISONS, comparison, dataclasses.replace(recipe.COMPARISONS[comparison], arms=arms))


def test_plan(data, tmp_path):
    runs = plan(STAGES, data, tmp_path, TINY)
    assert list(runs) == [arm.name for arm in STAGES]
    for name, run in runs.items():
        # Rounded to whole steps.
        if run.arm.same_compute_as:
            given = sum(runs[other].flops for other in run.arm.same_compute_as)
            assert abs(run.flops - given) <= run.flops / run.config.train.num_steps / 2
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
    chain = [arm for arm in STAGES if arm.name in ("stage1", "stage2", "stage3")]
    only(monkeypatch, "stages", chain)
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


@pytest.mark.parametrize("arms", [STAGES, SAVINGS], ids=["stages", "savings"])
def test_arms_start_from_arms_before_them(arms):
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    for i, arm in enumerate(arms):
        assert set(filter(None, (arm.after, *arm.same_compute_as))) <= set(names[:i])


def test_a_workdir_has_one_owner(data, tmp_path, capsys, monkeypatch):
    only(monkeypatch, "stages", STAGES[:1])
    arguments = ["--data", str(data), "--workdir", str(tmp_path), *(word for s in TINY for word in ("--set", s))]
    with held_elsewhere(tmp_path / ".lock"):
        assert recipe.main(arguments) == 2
    assert f"--workdir {tmp_path} is being written by another process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Two parts of a run, one of them routed and aligned.
SAVING = (*TINY, "model.depth=3", "train.num_steps=6", "train.checkpoint_every=3", "eval.every=3", "align.width=8")


def test_savings_and_their_report(data, tmp_path, monkeypatch, capsys):
    arms = [arm for arm in SAVINGS if arm.name in ("papers_0", "together_0")]
    only(monkeypatch, "savings", arms)
    arguments = ["--compare", "savings", "--data", str(data), "--workdir", str(tmp_path)]
    arguments += [word for s in SAVING for word in ("--set", s)]
    assert recipe.main(arguments) == 2
    assert "--align-weights" in capsys.readouterr().err
    weights = write_efficientnet(tmp_path / "network.pth")
    for said in ("56 pictures", "already there"):
        assert make_recipe_data.main(["--out", str(data), "--align-weights", str(weights)]) == 0
        assert said in capsys.readouterr().out.splitlines()[-1]
    assert recipe.main(arguments) == 0

    runs = plan(arms, data, tmp_path, SAVING)
    papers, together = runs["papers_0"], runs["together_0"]
    routed, whole = together.part_flops
    assert routed < whole
    last = together.config.train.num_steps
    assert together.flops == pytest.approx((last - 1) * routed + whole)
    assert together.flops_until(last - 1) == pytest.approx((last - 1) * routed)
    assert abs(together.flops - papers.flops) < whole
    lines = (tmp_path / "cheap.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [PAPERS, "all four"]
    loss = json.loads((tmp_path / "together_0" / "eval.jsonl").read_text().splitlines()[-1])["eval_loss"]
    assert f"{loss:.4f} ({loss:.4f} to {loss:.4f})" in lines[3]
    assert np.asarray(Image.open(tmp_path / "cheap.png")).std() > 0


def test_compute_saved_at_equal_loss():
    papers = [(0, 1.0), (1, 0.5), (4, 0.25)]
    # Four times the compute halves the loss: a straight line of the logarithms.
    assert savings_report.flops_to(papers, 0.25 * 2**0.5) == pytest.approx(2)
    assert savings_report.flops_to(papers, 0.75) == pytest.approx(0.5)
    assert savings_report.compute_saved(papers, papers) == 1
    assert savings_report.compute_saved(papers, [(0, 1.0), (2, 0.25), (4, 0.1)]) == 2
    # It ends where the papers' came to at twice the compute of their first point.
    assert savings_report.compute_saved(papers, [(0, 1.0), (4, 0.25 * 2**0.5)]) == pytest.approx(0.5)
