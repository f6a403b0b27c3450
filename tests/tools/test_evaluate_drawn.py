"""tools.evaluate of a checkpoint: it draws prompts, looks at the pictures and measures; shared, killed, over scales."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from golden_cases import GOLDEN
from PIL import Image
from tiny_run import simulated, tiny_config
from tiny_words import CAPTIONS, write_words_data
from watching import files_below

from pixart_jax.data.prompt_lists import captions_of_shards, seed_of
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.pixel_network import pixel_network
from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import to_uint8
from pixart_jax.generation.picture_lists import read_text
from pixart_jax.training.loop import train_and_evaluate
from tools.evaluate import command as evaluate

ROOT = pathlib.Path(__file__).parents[2]
SCALES = ["1.5", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """run/ of a few steps on data/, four pictures with captions."""
    folder = tmp_path_factory.mktemp("evaluated-run")
    config = tiny_config(write_words_data(folder / "data"))
    config.train.num_steps = 4
    config.sample.every = 0
    train_and_evaluate(config, str(folder / "run"))
    return folder


def arguments(place, out, *more):
    drawn = ["--checkpoint", str(place / "run"), "--prompts-from", str(place / "data"), "--num-steps", "2"]
    small = ["--draw-batch-size", "2", "--batch-size", "2", "--pictures-per-unit", "2", "--num-threads", "1"]
    return [*drawn, *small, "--metrics", "retrieval", "--out", str(out), "--guidance-scale", *SCALES, *more]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def out(place):
    """Drawn at both scales and measured."""
    assert evaluate.main(arguments(place, place / "out")) == 0
    return place / "out"


def pictures(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("pictures/**/*.png"))}


def test_a_curve_over_scales(place, out):
    assert [path.name for path in sorted(out.glob("*.json"))] == [
        "curve.json", "guidance-1.5.json", "guidance-4.json", "recipe.json",
    ]  # fmt: skip
    assert len(pictures(out)) == 8
    curve = read(out / "curve.json")
    assert [point["guidance_scale"] for point in curve["curve"]] == [1.5, 4.0]
    assert Image.open(out / "curve.png").size > (400, 300)
    assert Image.open(out / "by_guidance.png").size > (400, 300)
    assert (out / "curve.md").read_text(encoding="utf-8").count("\n| ") == 2
    shards = ShardReader(place / "data")
    decode = load_autoencoder(place / "data", shards.manifest).decode
    prepare = pixel_network().prepare
    real = np.stack([prepare(to_uint8(decode(shards[i].latent_mean[None])[0])) for i in range(4)])
    for scale, point in zip(SCALES, curve["curve"], strict=True):
        result = read(out / f"guidance-{scale}.json")
        drawn = np.stack(
            [prepare(np.asarray(Image.open(out / "pictures" / f"guidance-{scale}" / f"{i:06d}.png"))) for i in range(4)]
        )
        assert point["retrieval_at_1"] == result["metrics"]["retrieval_at_1"]
        assert point["retrieval_at_1"] == retrieval_at_1(drawn, real, np.arange(4))
    assert drawn.std() > 0.05


def test_a_result_holds_what_was_drawn_and_how(place, out):
    drawn = read(out / "guidance-4.json")["drawn"]
    assert drawn["guidance_scale"] == 4 and drawn["num_steps"] == 2 and drawn["sampler"] == "dpm-solver"
    assert drawn["checkpoint"] == "run" and drawn["step"] == 4 and len(drawn["weights"]) == 8
    assert drawn["prompts"]["total"] == 4 and drawn["prompts"]["seed"] == 0 and drawn["kept"]
    # The same noise at both scales, one for each picture.
    seeds = [
        [read_text(path)["seed"] for path in sorted((out / "pictures" / f"guidance-{scale}").glob("*.png"))]
        for scale in SCALES
    ]
    assert seeds[0] == seeds[1] == [str(seed_of(0, i)) for i in range(4)]
    captions = read(out / "pictures" / "guidance-4" / "captions.json")
    assert captions == {f"{i:06d}.png": caption for i, caption in enumerate(CAPTIONS)}


def test_two_processes_give_the_same_and_need_keep_no_picture(place, out, tmp_path, capsys):
    shared = ["--process-count", "2", "--no-keep-pictures"]
    assert evaluate.main(arguments(place, tmp_path, *shared, "--process-index", "1")) == 0
    assert "share is done" in capsys.readouterr().out and not (tmp_path / "curve.json").exists()
    assert evaluate.main(arguments(place, tmp_path, *shared, "--process-index", "0")) == 0
    assert read(tmp_path / "curve.json")["curve"] == read(out / "curve.json")["curve"]
    assert not pictures(tmp_path)
    for path in sorted(out.glob("features/**/*.npz")):
        ours, theirs = np.load(path), np.load(tmp_path / path.relative_to(out))
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files), path


def test_killed_ones_go_on(place, out, tmp_path):
    command = [sys.executable, "-m", "tools.evaluate", *arguments(place, tmp_path)]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    for wanted in (1, 4):
        process = subprocess.Popen(command, cwd=ROOT, env=simulated(1), **quiet)
        while len(files_below(tmp_path / "pictures", ".png")) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "curve.json").exists()
    assert evaluate.main(arguments(place, tmp_path)) == 0
    assert read(tmp_path / "curve.json")["curve"] == read(out / "curve.json")["curve"]
    assert pictures(tmp_path) == pictures(out)


def test_other_settings_need_another_folder(place, out, capsys):
    before = pictures(out)
    assert evaluate.main(arguments(place, out, "--seed", "1")) == 2
    assert "was begun with other guidance-1.5, guidance-4" in capsys.readouterr().err
    assert pictures(out) == before


def test_bad_input_is_refused_before_anything_is_drawn(place, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "one.txt").write_text("a red square\n")
    (tmp_path / "list.json").write_text('{"a": 3}')
    out = tmp_path / "out"
    base = ["--checkpoint", str(place / "run"), "--metrics", "is", "--inception", "none.pth", "--out", str(out)]
    retrieval = ["--checkpoint", str(place / "run"), "--prompts-from", str(place / "data"), "--out", str(out)]
    retrieval += ["--metrics", "retrieval"]
    for given, said in [
        ([*base], "--prompts"),
        ([*base, "--metrics", "retrieval", "--prompts", str(tmp_path / "one.txt")], "--prompts-from DIR"),
        ([*retrieval, "--num-pictures", "1"], "metrics need two or more"),
        ([*retrieval, "--num-pictures", "5"], "there are 4 prompts"),
        ([*retrieval, "--guidance-scale", "nan"], "--guidance-scale = nan"),
        ([*retrieval, "--guidance-scale", "2", "2.0"], "name each once"),
        ([*retrieval, "--checkpoint", str(tmp_path / "none")], "none does not exist"),
        ([*retrieval, "--draw-batch-size", "0"], "--draw-batch-size 0"),
        ([*retrieval, "--num-steps", "0"], "--num-steps = 0"),
        ([*retrieval, "--metrics", "retrieval", "fid", "--weights", "x"], "--reference is missing"),
        ([*retrieval, "--statistics", "x.npz", "--weights", "x"], "not of what a --checkpoint draws"),
        ([str(place), *retrieval], "one of the two"),
        ([str(place), "--out", str(out), "--metrics", "is", "--weights", "x", "--num-steps", "3"], "--num-steps: say"),
    ]:
        assert evaluate.main(given) == 2, given
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_prompts_of_a_file_that_will_not_do(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "open_networks", lambda args: {})
    out = tmp_path / "out"
    for text, name, said in [
        ("\n \n", "a.txt", "holds no prompt"),
        ("x\n", "b.txt", "two or more"),
        ("{", "c.json", "damaged"),
    ]:
        (tmp_path / name).write_text(text)
        given = ["--checkpoint", str(place / "run"), "--prompts", str(tmp_path / name), "--out", str(out)]
        assert evaluate.main([*given, "--metrics", "is", "--weights", "x"]) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_prompts_are_the_captions_of_a_clip_score(place, out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    clip = GOLDEN / "extras" / "clip"
    assert evaluate.main(arguments(place, tmp_path / "out", "--metrics", "clip_score", "--clip", str(clip))) == 0
    network = ClipNetwork(clip)
    captions = network.text_features(captions_of_shards(ShardReader(place / "data"), range(4), "data"))
    for scale in SCALES:
        files = sorted((out / "pictures" / f"guidance-{scale}").glob("*.png"))
        scores = 100 * (network.image_features([Image.open(file) for file in files]) * captions).sum(1)
        found = read(tmp_path / "out" / f"guidance-{scale}.json")
        assert found["metrics"] == {"clip_score": pytest.approx(max(scores.mean(), 0), rel=1e-4)}
        own = read(tmp_path / "out" / f"guidance-{scale}-clip_scores.json")
        np.testing.assert_allclose(list(own.values()), scores, atol=1e-3)
