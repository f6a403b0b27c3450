"""tools.evaluate as a command: two folders of pictures, killed and resumed, shared, compared, and what it refuses."""

import dataclasses
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from classifier_weights import write_efficientnet
from inception_weights import draw_weights
from owners import held_elsewhere
from PIL import Image
from watching import files_below

from pixart_jax.evaluators.feature_networks import frechet_name, kernel_name, open_network
from tools.evaluate import command as evaluate

ROOT = pathlib.Path(__file__).parents[2]
METRICS = ["--metrics", "fid", "kid", "pr"]
# Whose roots of matrices do not cost seconds.
CHEAP = ["--metrics", "kid", "pr"]
SMALL = ["--batch-size", "4", "--pictures-per-unit", "4", "--num-threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """weights.pth; generated/ of 7 pictures, one broken and a text beside them; real/ of 6."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.save(draw_weights(), folder / "weights.pth")
    random = np.random.default_rng(0)
    for name, count in (("generated", 7), ("real", 6)):
        (folder / name / "deeper").mkdir(parents=True)
        for i in range(count):
            height, width = random.integers(20, 60, 2)
            pixels = random.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / ("deeper" if i % 2 else "") / f"{i:02d}.png")
    (folder / "generated" / "broken.png").write_bytes((folder / "generated" / "00.png").read_bytes()[:500])
    (folder / "generated" / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


def _arguments(place, out, *more):
    named = [str(place / "generated"), "--reference", str(place / "real"), "--inception", str(place / "weights.pth")]
    return [*named, "--out", str(out), *SMALL, *more]


@pytest.fixture(scope="module")
def result(place):
    assert evaluate.main(_arguments(place, place / "out", *METRICS)) == 0
    return json.loads((place / "out" / "result.json").read_text(encoding="utf-8"))


def test_result_holds_what_it_depends_on(place, result):
    figures = result["metrics"]
    # The weights are not the published ones, so this is not called FID.
    assert set(figures) == {"frechet_distance", "kid", "kid_std", "precision", "recall"}
    assert all(np.isfinite(value) for value in figures.values()) and figures["frechet_distance"] > 0
    assert result["pictures"]["files"] == 8 and result["pictures"]["used"] == 7 and result["pictures"]["skipped"] == 1
    assert result["reference"]["used"] == 6 and result["networks"]["distances"]["preprocessing"] == "clean-fid"
    assert result["kid_subset_size"] == 6 and not result["networks"]["distances"]["published"]
    assert "broken.png: damaged" in (place / "out" / "skipped.txt").read_text(encoding="utf-8")
    assert "weights that are not the published ones" in (place / "out" / "result.md").read_text(encoding="utf-8")


def test_what_efficientnet_measures_is_not_called_fid_or_kid(place, tmp_path, capsys):
    weights = write_efficientnet(tmp_path / "lite0.pth")
    arguments = [
        str(place / "generated"),
        "--reference",
        str(place / "real"),
        "--network",
        "efficientnet-lite0",
        *SMALL,
    ]
    arguments += ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, *CHEAP]) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert set(found["metrics"]) == {"kernel_distance", "kernel_distance_std", "precision", "recall"}
    assert found["networks"]["distances"]["name"] == "EfficientNet-lite0"
    assert "EfficientNet-lite0" in capsys.readouterr().out
    for more, said in (
        (["--metrics", "is"], "--metrics is: an Inception Score"),
        (["--preprocessing", "clean-fid"], "has its own: leave it out"),
        (["--weights", str(place / "weights.pth")], "weights.pth: "),
    ):
        assert evaluate.main([*arguments, *more]) == 2
        assert said in capsys.readouterr().err


def test_weights_of_another_network_are_named_in_a_few_lines(place, tmp_path, capsys):
    inception, lite = place / "weights.pth", write_efficientnet(tmp_path / "lite0.pth")
    sets = [str(place / "generated"), "--reference", str(place / "real"), "--out", str(tmp_path / "out")]
    for weights, network, other in (
        (lite, "fid-inception", "efficientnet-lite0"),
        (inception, "efficientnet-lite0", "fid-inception"),
    ):
        assert evaluate.main([*sets, "--weights", str(weights), "--network", network]) == 2
        first, *lines = capsys.readouterr().err.splitlines()
        assert first == f"error: {weights}: does not fit {network}:" and len(lines) == 7
        assert re.fullmatch(r"  and \d{3} more", lines[-2]) and f"--network {other} with --weights" in lines[-1]
    arrays = torch.load(inception)
    del arrays["fc.bias"]
    torch.save(arrays, tmp_path / "damaged.pth")
    assert evaluate.main([*sets, "--weights", str(tmp_path / "damaged.pth")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path}/damaged.pth: does not fit fid-inception:\n  not filled: fc_bias (1008,)\n"


def test_the_fid_of_inception_s_published_weights_alone_is_called_so(place):
    network = open_network("fid-inception", place / "weights.pth")
    assert (frechet_name(network), kernel_name(network)) == ("frechet_distance", "kid")
    assert frechet_name(dataclasses.replace(network, published=True)) == "fid"
    assert frechet_name(dataclasses.replace(network, published=True, name="EfficientNet-lite0")) == "frechet_distance"


def test_two_processes_give_the_same(place, result, tmp_path, capsys):
    for index in ("1", "0"):
        shared = ["--process-index", index, "--process-count", "2"]
        assert evaluate.main(_arguments(place, tmp_path / "out", *CHEAP, *shared)) == 0
        assert (tmp_path / "out" / "result.json").exists() == (index == "0")
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert len(found["metrics"]) == 4
    assert found["metrics"] == pytest.approx({name: result["metrics"][name] for name in found["metrics"]}, rel=1e-6)


@pytest.mark.parametrize(("index", "count", "held"), [(0, 1, "0-of-1"), (1, 2, "1-of-2"), (0, 2, "2-of-3")])
def test_a_share_has_one_owner(place, index, count, held, tmp_path, capsys):
    (tmp_path / "out" / ".locks").mkdir(parents=True)
    shared = ["--process-index", str(index), "--process-count", str(count)]
    with held_elsewhere(tmp_path / "out" / ".locks" / held):
        assert evaluate.main(_arguments(place, tmp_path / "out", *CHEAP, *shared)) == 2
    said = capsys.readouterr().err
    assert f"(process {held.replace('-', ' ')}) is being written by another process" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".locks"]


def test_a_killed_one_goes_on(place, result, tmp_path):
    command = [sys.executable, "-m", "tools.evaluate", *_arguments(place, tmp_path / "out", *CHEAP)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not files_below(tmp_path / "out/features/pictures", ".npz") and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = tmp_path / "out" / "features" / "pictures" / "FID-Inception" / "000000.npz"
    written = first.stat().st_mtime_ns
    assert evaluate.main(_arguments(place, tmp_path / "out", *CHEAP)) == 0
    assert first.stat().st_mtime_ns == written
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert len(found["metrics"]) == 4
    assert found["metrics"] == pytest.approx({name: result["metrics"][name] for name in found["metrics"]}, rel=1e-6)


def test_statistics_are_a_reference(place, result, tmp_path):
    weights = ["--inception", str(place / "weights.pth"), "--out", str(tmp_path / "real"), *SMALL]
    assert evaluate.main([str(place / "real"), *weights, "--statistics", str(tmp_path / "new" / "real.npz")]) == 0
    shutil.copytree(place / "out" / "features", tmp_path / "out" / "features")  # The features are there already.
    arguments = _arguments(place, tmp_path / "out")
    arguments[2] = str(tmp_path / "new" / "real.npz")
    assert evaluate.main(arguments) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert found["metrics"]["frechet_distance"] == pytest.approx(result["metrics"]["frechet_distance"], rel=1e-9)
    assert found["reference"]["used"] == 6
    assert found["reference"]["fingerprint"] == result["reference"]["fingerprint"]


def test_only_what_compares_is_set_side_by_side(place, result, tmp_path, capsys):
    network = result["networks"]["distances"]
    path = str(tmp_path / "first.json")
    drawn = {"checkpoint": "a", "weights": "b", "step": 3, "sampler": "ddim", "num_steps": 2, "height": 8, "width": 8}
    drawn |= {"pictures": 2, "prompts": {"sha256": "y", "seed": 0, "total": 2, "source": "list"}}
    (tmp_path / "first.json").write_text(json.dumps(result | {"drawn": drawn}), encoding="utf-8")
    assert evaluate.main(["--compare", str(place / "out" / "result.json"), path]) == 0
    assert "weights b, step 3" in capsys.readouterr().out  # Whose prompts nobody knows may be the same.
    assert evaluate.main(["--compare", path, path]) == 0
    assert capsys.readouterr().out.count(str(place / "generated")) == 2
    for more, said in (
        (["--num-steps", "3"], "does not heed --num-steps"),
        (["--suite", "compbench", "a"], "heed PICTURES"),
    ):
        assert evaluate.main(["--compare", path, path, *more]) == 2
        assert said in capsys.readouterr().err
    for change, said in [
        ({"networks": {"distances": network | {"preprocessing": "pytorch-fid"}}}, "'clean-fid' and 'pytorch-fid'"),
        ({"pictures": result["pictures"] | {"used": 5}}, "pictures.used: 7 and 5"),
        ({"reference": result["reference"] | {"fingerprint": "x"}}, "reference.fingerprint"),
        ({"networks": {"distances": network | {"sha256": "x"}}}, "networks.distances.sha256"),
        ({"metrics": {"retrieval_at_1": 1.0}}, "no metric in common"),
        ({"drawn": {"prompts": {"sha256": "x"}}}, "drawn.prompts.sha256: 'y' and 'x'"),
    ]:
        (tmp_path / "other.json").write_text(json.dumps(result | change), encoding="utf-8")
        assert evaluate.main(["--compare", path, str(tmp_path / "other.json")]) == 2
        assert said in capsys.readouterr().err
    for text in ("{", "[]", "{}", '{"metrics": {}}'):
        (tmp_path / "other.json").write_text(text, encoding="utf-8")
        assert evaluate.main(["--compare", path, str(tmp_path / "other.json")]) == 2
        assert "other.json" in capsys.readouterr().err
    for change, said in [
        ({"drawn": {}}, "drawn.checkpoint"),
        ({"drawn": 5}, "drawn"),
        ({"drawn": drawn | {"prompts": {"sha256": "y"}}}, "drawn.prompts."),
        ({"networks": {"distances": network | {"published": [1]}}}, "networks.distances.published"),
    ]:
        (tmp_path / "other.json").write_text(json.dumps(result | change), encoding="utf-8")
        assert evaluate.main(["--compare", path, str(tmp_path / "other.json")]) == 2
        assert f"other.json: {said}" in capsys.readouterr().err


def test_bad_input_is_refused_before_the_network_runs(place, tmp_path, capsys):
    mu, sigma = np.zeros(2048), np.eye(2048)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no numbers", encoding="utf-8")
    np.savez(tmp_path / "good.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "narrow.npz", mu=mu[:768], sigma=sigma[:768, :768])
    np.savez(tmp_path / "half.npz", mu=mu)
    np.savez(tmp_path / "nan.npz", mu=mu * np.nan, sigma=sigma)
    np.savez(tmp_path / "hole.npz", mu=mu, sigma=np.where(sigma, np.nan, 0))
    np.savez(tmp_path / "lopsided.npz", mu=mu, sigma=np.triu(sigma + 1))
    np.savez(tmp_path / "negative.npz", mu=mu, sigma=-sigma)
    np.savez(tmp_path / "words.npz", mu=mu, sigma=np.full(sigma.shape, "x"))
    np.savez(tmp_path / "counts.npz", mu=mu, sigma=sigma, count=[1, 2])
    np.savez(tmp_path / "below.npz", mu=mu, sigma=sigma, count=-5)
    np.savez(tmp_path / "other.npz", mu=mu, sigma=sigma, preprocessing="pytorch-fid")
    np.savez(tmp_path / "foreign.npz", mu=mu, sigma=sigma, network="x")
    for reference, more, said in [
        ("missing", [], "missing is no folder"),
        ("empty", [], "no pictures"),
        ("good.npz", ["--metrics", "fid", "kid"], "mean and covariance only"),
        ("good.npz", ["--inception", str(tmp_path / "none.pth")], "none.pth cannot be read"),
        ("text.npz", [], "text.npz cannot be read"),
        ("narrow.npz", [], "768 values"),
        ("half.npz", [], "should hold mu"),
        ("nan.npz", [], "finite"),
        ("hole.npz", [], "sigma is not finite"),
        ("lopsided.npz", [], "no covariance"),
        ("negative.npz", [], "no covariance"),
        ("words.npz", [], "should hold mu"),
        ("counts.npz", [], "count should be"),
        ("below.npz", [], "not -5"),
        ("other.npz", [], "--preprocessing pytorch-fid"),
        ("foreign.npz", [], "other weights"),
        ("good.npz", ["--batch-size", "0"], "--batch-size 0"),
        ("good.npz", ["--process-index", "1"], "--process-index 1"),
        ("good.npz", ["--statistics", "x.npz"], "leave --reference out"),
    ]:
        out = tmp_path / "out"
        arguments = [str(place / "generated"), "--inception", str(place / "weights.pth"), "--out", str(out), *more]
        assert evaluate.main([*arguments, "--reference", str(tmp_path / reference)]) == 2, reference
        assert said in capsys.readouterr().err
        assert not out.exists()
    assert evaluate.main(arguments[:5]) == 2
    assert "--reference is missing" in capsys.readouterr().err
    (tmp_path / "folder.npz").mkdir()
    for name, said in [("real.txt", "call it .npz"), ("folder.npz", "is a folder"), ("text.npz/x.npz", "is no folder")]:
        assert evaluate.main([*arguments[:5], "--statistics", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()


OF_OTHERS = [
    (["--metrics", "pr", "--kid-subset-size", "5"], "--kid-subset-size: of --metrics kid, and none"),
    (["--metrics", "is"], "--reference: of --metrics fid, kid, pr, cmmd"),
    (["--clip", "CLIP"], "--clip: of --metrics clip_score, cmmd"),
    (["--clip-preprocessing", "openai"], "--clip-preprocessing: of --metrics clip_score"),
    (["--cmmd-preprocessing", "cmmd-stretch"], "--cmmd-preprocessing: of --metrics cmmd"),
    (["--metrics", "cmmd", "--clip", "CLIP"], "--inception: of --metrics fid, kid, is, pr"),
    (["--metrics", "cmmd", "--clip", "CLIP", "--preprocessing", "clean-fid"], "--inception, --preprocessing: of"),
    (["--vae", "DIR"], "--vae DIR: decodes feature shards that have no linear autoencoder"),
]


@pytest.mark.parametrize(("more", "said"), OF_OTHERS)
def test_what_only_other_metrics_heed_is_refused(place, more, said, tmp_path, capsys):
    assert evaluate.main(_arguments(place, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_statistics_are_of_no_metric(place, tmp_path, capsys):
    given = [str(place / "real"), "--inception", str(place / "weights.pth"), "--out", str(tmp_path / "out")]
    given += ["--statistics", str(tmp_path / "real.npz"), "--metrics", "pr", "--kid-subset-size", "5"]
    assert evaluate.main(given) == 2
    assert "--metrics, --kid-subset-size: --statistics writes mean and covariance" in capsys.readouterr().err


@pytest.mark.parametrize(("side", "what"), [("generated", "PICTURES"), ("real", "--reference")])
def test_nothing_is_written_among_the_pictures(place, side, what, capsys):
    before = sorted((place / side).rglob("*"))
    assert evaluate.main(_arguments(place, place / side)) == 2
    assert f"is the folder of {what}" in capsys.readouterr().err
    assert sorted((place / side).rglob("*")) == before


def test_a_folder_begun_otherwise_is_not_gone_on_with(place, result, capsys):
    assert evaluate.main(_arguments(place, place / "out", "--preprocessing", "pytorch-fid")) == 2
    assert "other preprocessing" in capsys.readouterr().err


def test_features_that_are_not_finite_name_the_picture(place, tmp_path, capsys):
    weights = draw_weights()
    weights["Mixed_7c.branch1x1.bn.bias"][0] = 3e38  # Finite, as all weights that are read: their sum is not.
    torch.save(weights, tmp_path / "weights.pth")
    arguments = _arguments(place, tmp_path / "out")
    arguments[4] = str(tmp_path / "weights.pth")
    assert evaluate.main(arguments) == 2
    assert "00.png: its features are not finite" in capsys.readouterr().err
