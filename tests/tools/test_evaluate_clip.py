"""tools.evaluate with CLIP: score and discrepancy of folders, shared and gone on with; what is refused before work."""

import json
import shutil

import numpy as np
import pytest
from golden_cases import GOLDEN
from PIL import Image

from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.distances import clip_discrepancy
from tools.evaluate import command as evaluate

CLIP = GOLDEN / "extras" / "clip"
SMALL = ["--batch-size", "2", "--pictures-per-unit", "3", "--num-threads", "1"]
CAPTIONS = ["the cat on a mat", "red dog", "the cat on a mat", "a red cat", "dog " * 90]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """generated/ of 5 pictures with captions beside them, and a broken one; real/ of 4."""
    folder = tmp_path_factory.mktemp("clip")
    random = np.random.default_rng(0)
    for name, count in (("generated", 5), ("real", 4)):
        (folder / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (*random.integers(15, 40, 2), 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    for i, caption in enumerate(CAPTIONS):
        (folder / "generated" / f"{i}.txt").write_text(caption + "\n", encoding="utf-8")
    (folder / "generated" / "broken.png").write_bytes(b"no picture")
    (folder / "generated" / "broken.txt").write_text("dog", encoding="utf-8")
    return folder


def arguments(place, out, *more):
    named = [str(place / "generated"), "--reference", str(place / "real"), "--clip", str(CLIP), "--out", str(out)]
    return [*named, "--metrics", "clip_score", "cmmd", *SMALL, *more]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def result(place):
    assert evaluate.main(arguments(place, place / "out")) == 0
    return read(place / "out" / "result.json")


def pictures(folder, count):
    return [np.asarray(Image.open(folder / f"{i}.png")) for i in range(count)]


def test_figures_are_those_of_the_features(place, result):
    generated, real = pictures(place / "generated", 5), pictures(place / "real", 4)
    network = ClipNetwork(CLIP)
    scores = 100 * (network.image_features(generated) * network.text_features(CAPTIONS)).sum(1)
    for_cmmd = ClipNetwork(CLIP, preprocessing="cmmd")
    distance = clip_discrepancy(*map(for_cmmd.image_features, (generated, real)))
    # The network is not the one that CMMD is defined with, so this is not called CMMD.
    assert result["metrics"] == pytest.approx({"clip_score": max(scores.mean(), 0), "clip_discrepancy": distance}, 1e-4)
    own = read(place / "out" / "clip_scores.json")
    assert list(own) == [str(place / "generated" / f"{i}.png") for i in range(5)]
    np.testing.assert_allclose(list(own.values()), scores, atol=1e-3)


def test_result_holds_what_it_depends_on(place, result):
    networks = result["networks"]
    assert {purpose: network["preprocessing"] for purpose, network in networks.items()} == {
        "clip_score": "transformers",
        "captions": "cut to 77 tokens",
        "cmmd": "cmmd",
    }
    assert networks["clip_score"]["sha256"] == networks["cmmd"]["sha256"] != networks["captions"]["sha256"]
    assert result["clip"] == str(CLIP)
    assert result["captions"]["count"] == 6 and result["captions"]["distinct"] == 5
    assert result["pictures"]["used"] == 5 and result["pictures"]["skipped"] == 1 and result["reference"]["used"] == 4
    text = (place / "out" / "result.md").read_text(encoding="utf-8")
    assert f"CLIP ViT-32x2/8@16 with weights {networks['clip_score']['sha256'][:8]}" in text


def test_two_processes_give_the_same(place, result, tmp_path):
    for index in ("1", "0"):
        shared = ["--process-index", index, "--process-count", "2"]
        assert evaluate.main(arguments(place, tmp_path / "out", *shared)) == 0
        assert (tmp_path / "out" / "result.json").exists() == (index == "0")
    assert read(tmp_path / "out" / "result.json")["metrics"] == pytest.approx(result["metrics"], rel=1e-6)


def test_what_is_there_is_not_looked_at_again(place, result, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    units = sorted((tmp_path / "out").rglob("*.npz"))
    assert len(units) == 2 + 2 * 2 + 2  # Of five captions, of six pictures by two networks, of four real ones.
    (tmp_path / "out" / "result.json").unlink()
    units[0].unlink()
    written = {unit: unit.stat().st_mtime_ns for unit in units[1:]}
    assert evaluate.main(arguments(place, tmp_path / "out")) == 0
    assert {unit: unit.stat().st_mtime_ns for unit in units[1:]} == written
    assert read(tmp_path / "out" / "result.json")["metrics"] == result["metrics"]


def test_the_score_alone_needs_no_reference_and_takes_captions_of_a_file(place, result, tmp_path):
    named = {f"{i}": caption for i, caption in enumerate(CAPTIONS)} | {"broken.png": "dog"}
    (tmp_path / "captions.json").write_text(json.dumps(named), encoding="utf-8")
    shutil.copytree(place / "generated", tmp_path / "bare", ignore=shutil.ignore_patterns("*.txt"))
    alone = [str(tmp_path / "bare"), "--clip", str(CLIP), "--metrics", "clip_score", *SMALL]
    alone += ["--captions", str(tmp_path / "captions.json"), "--out", str(tmp_path / "out")]
    assert evaluate.main(alone) == 0
    found = read(tmp_path / "out" / "result.json")
    assert found["metrics"] == {"clip_score": pytest.approx(result["metrics"]["clip_score"], rel=1e-6)}
    assert found["captions"]["source"] == str(tmp_path / "captions.json")


def test_other_captions_do_not_compare(place, result, tmp_path, capsys):
    changed = result | {"captions": result["captions"] | {"sha256": "x"}}
    (tmp_path / "other.json").write_text(json.dumps(changed), encoding="utf-8")
    assert evaluate.main(["--compare", str(place / "out" / "result.json"), str(tmp_path / "other.json")]) == 2
    assert "captions.sha256" in capsys.readouterr().err


def test_bad_input_is_refused_before_a_network_looks(place, tmp_path, capsys):
    generated, real = str(place / "generated"), str(place / "real")
    (tmp_path / "no").mkdir()
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(20), sigma=np.eye(20))
    out = tmp_path / "out"
    for given, said in [
        ([real, "--metrics", "clip_score", "--clip", str(CLIP)], "4 of 4 pictures have no caption: 0.png, 1.png"),
        ([generated, "--metrics", "clip_score"], "--clip is missing"),
        ([generated, "--metrics", "cmmd", "--clip", str(CLIP)], "--reference is missing"),
        ([generated, "--metrics", "clip_score", "--clip", str(tmp_path / "no")], "no config.json"),
        (
            [generated, "--metrics", "cmmd", "--clip", str(CLIP), "--reference", str(tmp_path / "statistics.npz")],
            "need the reference's pictures",
        ),
        (
            [generated, "--metrics", "cmmd", "--clip", str(CLIP), "--reference", real, "--captions", "x.json"],
            "--captions says what PICTURES show",
        ),
    ]:
        assert evaluate.main([*given, "--out", str(out), *SMALL]) == 2, said
        assert said in capsys.readouterr().err
        assert not out.exists()


def test_sides_of_which_fewer_than_two_pictures_can_be_read_have_no_figures(place, tmp_path, capsys):
    for name, good in (("one", 1), ("none", 0)):
        (tmp_path / name).mkdir()
        for i in range(2):
            source = place / "generated" / ("0.png" if i < good else "broken.png")
            shutil.copy(source, tmp_path / name / f"{i}.png")
    generated = str(place / "generated")
    for number, (pictures, reference, said) in enumerate(
        [("one", generated, "one: 1 of"), ("none", generated, "none: 0 of"), (generated, "one", "one: 1 of")]
    ):
        named = [
            str(tmp_path / pictures),
            "--reference",
            str(tmp_path / reference),
            "--out",
            str(tmp_path / f"{number}"),
        ]
        assert evaluate.main([*named, "--metrics", "cmmd", "--clip", str(CLIP), *SMALL]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / f"{number}" / "result.json").exists()
