"""tools.evaluate --suite compbench: pictures drawn and scored, killed and resumed, shared, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from evaluators.compbench.torch_networks import make_blip, make_detr
from golden_cases import GOLDEN
from PIL import Image

from pixart_jax.evaluators.clip_network import ClipNetwork
from pixart_jax.evaluators.compbench.language import English
from pixart_jax.evaluators.compbench.layout import Pictures
from pixart_jax.evaluators.compbench.scorers import ClipScorer
from pixart_jax.evaluators.compbench.units import Units
from pixart_jax.generation.picture_lists import read_text
from tools.evaluate import command

PROMPTS = {
    "color": ["a red cat and a blue dog"],
    "shape": ["a square hat", "a round sofa"],
    "spatial": ["a cat near a sofa", "a bee on the left of a dog"],
    "non_spatial": ["a man waves at a dog"],
    "complex": ["The red hat was on top of the sofa.", "The red cat sat near the dog.", "The soft dog runs."],
    "numeracy": ["two cats and a dog"],
    "3d_spatial": ["a sofa in front of a cat"],
}
SMALL = ["--pictures-per-unit", "8", "--batch-size", "4", "--num-threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """dataset/ of prompts, blip/, detr/, pictures/ of three categories; one of color's is broken."""
    folder = tmp_path_factory.mktemp("compbench")
    (folder / "dataset").mkdir()
    for name, prompts in PROMPTS.items():
        (folder / "dataset" / f"{name}_val.txt").write_text("\n".join(prompts))  # Theirs lack a last newline too.
    (folder / "dataset" / "complex_val_spatial.txt").write_text(PROMPTS["complex"][0] + "\n")
    (folder / "dataset" / "complex_val_action.txt").write_text(PROMPTS["complex"][2] + "\n")
    (folder / "dataset" / "new_objects.txt").write_text("cat - cats\ndog - dogs")
    random = np.random.default_rng(0)
    for name in ("color", "spatial", "non_spatial", "complex", "numeracy", "3d_spatial"):
        samples = folder / "pictures" / name / "samples"
        samples.mkdir(parents=True)
        for index, picture in enumerate(names_of(name)):
            pixels = random.integers(0, 256, (24 + index, 32, 3), np.uint8)
            Image.fromarray(pixels).save(samples / picture)
    broken = folder / "pictures" / "color" / "samples" / names_of("color")[3]
    broken.write_bytes(broken.read_bytes()[:200])
    make_blip(folder / "blip")
    make_detr(folder / "detr")
    return folder


def names_of(category):
    return [f"{prompt}_{10 * i + k:06d}.png" for i, prompt in enumerate(PROMPTS[category]) for k in range(10)]


def run(place, out, *more, pictures="pictures", categories=("color",)):
    named = ["--suite", "compbench", *([str(place / pictures)] if pictures else [])]
    named += ["--compbench", str(place / "dataset"), "--categories", *categories, "--out", str(out)]
    return command.main([*named, *SMALL, *map(str, more)])


def scores_of(out, folder):
    entries = json.loads((out / folder / "vqa_result.json").read_text())
    assert [entry["question_id"] for entry in entries] == list(range(len(entries)))
    return [float(entry["answer"]) for entry in entries]


@pytest.fixture(scope="module")
def colors(place):
    out = place / "colors"
    assert run(place, out, "--blip", place / "blip") == 0
    return out


def test_blip_scores_attributes(place, colors):
    result = json.loads((colors / "result.json").read_text(encoding="utf-8"))
    raw = json.loads((colors / "color" / "annotation_blip" / "vqa_result.json").read_text())
    assert all(isinstance(entry["answer"], str) for entry in raw)
    scores = scores_of(colors, "color/annotation_blip")
    known = np.delete(scores, 3)
    assert len(scores) == 10 and np.isnan(scores[3]) and (known > 0).all() and np.ptp(known) > 0
    assert result["scores"] == {"color": pytest.approx(known.mean())}
    text = (colors / "color" / "annotation_blip" / "blip_vqa_score.txt").read_text()
    assert float(text.removeprefix("BLIP-VQA score:")) == pytest.approx(known.mean())
    about = result["pictures"]["color"]
    assert (about["prompts"], about["files"], about["used"], about["drawn"]) == (1, 10, 9, {})
    network = result["networks"]["color"]["blip"]
    assert network["name"].startswith("BLIP-VQA") and len(network["sha256"]) == 64 and network["differs"] == ""
    name = names_of("color")[3]
    assert f"color/samples/{name}: damaged" in (colors / "skipped.txt").read_text(encoding="utf-8")
    assert "1 could not be read" in (colors / "result.md").read_text(encoding="utf-8")


def test_a_killed_one_goes_on(place, colors, tmp_path, monkeypatch):
    arguments = (place, tmp_path / "out", "--blip", place / "blip")
    done = []

    def judge_unit(units, number, *rest, whole=Units._judge_unit):
        if done:
            raise KeyboardInterrupt
        done.append(number)
        whole(units, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Units, "_judge_unit", judge_unit)
        assert run(*arguments) == 130
    unit = next((tmp_path / "out").glob(".units/color/blip/000000.json"))
    kept = unit.stat().st_mtime_ns
    assert not (tmp_path / "out" / "result.json").exists()
    assert run(*arguments) == 0
    assert unit.stat().st_mtime_ns == kept
    for name in ("result.json", "skipped.txt", "color/annotation_blip/vqa_result.json"):
        assert (tmp_path / "out" / name).read_bytes() == (colors / name).read_bytes()


def test_two_processes_share(place, colors, tmp_path, capsys):
    for index in (1, 0):
        shared = ("--process-index", index, "--process-count", 2)
        assert run(place, tmp_path / "out", "--blip", place / "blip", *shared) == 0
        assert (tmp_path / "out" / "result.json").exists() == (index == 0)
    assert (tmp_path / "out" / "result.json").read_bytes() == (colors / "result.json").read_bytes()
    assert "the one that ends last adds up" in capsys.readouterr().out


def test_only_what_compares_stands_side_by_side(colors, tmp_path, capsys):
    def side_by_side(change):
        result = json.loads((colors / "result.json").read_text(encoding="utf-8"))
        change(result)
        (tmp_path / "other.json").write_text(json.dumps(result))
        return command.main(
            ["--suite", "compbench", "--compare", str(colors / "result.json"), str(tmp_path / "other.json")]
        )

    assert side_by_side(lambda result: result["scores"].update(color=0.25, shape=None)) == 0
    assert "other.json | 0.2500 |  |" in capsys.readouterr().out
    for change, said in [
        (lambda result: result["pictures"]["color"].update(used=8), "color, pictures: 9 and 8"),
        (lambda result: result["networks"]["color"]["blip"].update(sha256="0"), "color, networks"),
        (lambda result: result["pictures"]["color"].update(prompts_sha256="0"), "color, prompts"),
        (lambda result: result.update(scores={"shape": 0.5}), "no category in common"),
        (lambda result: result.pop("suite"), "suite is missing"),
    ]:
        assert side_by_side(change) == 2
        assert said in capsys.readouterr().err


def test_pictures_that_changed_are_looked_at_again(place, tmp_path):
    root = shutil.copytree(place / "pictures" / "numeracy", tmp_path / "in" / "numeracy").parent
    arguments = {"pictures": root, "categories": ("numeracy",)}
    assert run(place, tmp_path / "out", "--detector", place / "detr", **arguments) == 0
    units = sorted((tmp_path / "out").glob(".units/numeracy/numeracy/0*.json"))
    before = [unit.read_bytes() for unit in units]
    Image.new("RGB", (64, 64), "red").save(root / "numeracy" / "samples" / names_of("numeracy")[9])
    assert run(place, tmp_path / "out", "--detector", place / "detr", **arguments) == 0
    after = [unit.read_bytes() for unit in units]
    assert after[0] == before[0] and after[1] != before[1]
    # Other weights would make a mixture.
    make_detr(tmp_path / "detr", seed=2)
    assert run(place, tmp_path / "out", "--detector", tmp_path / "detr", **arguments) == 2


def detections_of(category, **more):
    """A cat on the left, a sofa on the right, of each picture; in a picture of twice the size that is seen."""
    found = {"labels": ["cat", "cat", "sofa"], "scores": [0.4, 0.9, 0.8], "size": [958, 958]}  # The first is none.
    boxes = [[0, 0, 9, 9], [0, 100, 200, 300], [700, 100, 900, 300]]
    pictures = {name: found | {"boxes": boxes} for name in names_of(category)}
    return {"detector": "Unified_learned_OCIM_RS200_6x+2x", "category": category, "pictures": pictures} | more


@pytest.fixture
def found(tmp_path):
    """Writes a file of detections."""

    def write(content):
        path = tmp_path / f"found-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_detections_of_the_benchmarks_own_detector(place, found, tmp_path):
    path = found(detections_of("spatial", labels=["cat", "sofa", "dog"]))
    assert run(place, tmp_path / "out", "--detections", path, categories=("spatial",)) == 0
    scores = scores_of(tmp_path / "out", "spatial/labels/annotation_obj_detection_2d")
    # Their heights are the same: near. The second prompt's things are not found.
    assert scores == [pytest.approx(0.25 * (0.9 + 0.8) + 0.5)] * 10 + [0] * 10
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    network = result["networks"]["spatial"]["spatial"]
    assert network["name"] == "Unified_learned_OCIM_RS200_6x+2x"
    assert network["differs"] == "no label for 1 of 4 things: bee"


def test_depths_are_the_benchmarks_maps(place, found, tmp_path, capsys):
    content = detections_of("3d_spatial")
    for picture in content["pictures"].values():
        picture["boxes"] = [[0, 0, 9, 9], [0, 0, 400, 400], [20, 20, 420, 420]]  # Half that in what is seen.
    arguments = ("--detections", found(content))
    assert run(place, tmp_path / "out", *arguments, categories=("3d_spatial",)) == 2
    assert "10 of 10 pictures of 3d_spatial have no map of depths" in capsys.readouterr().err
    root = shutil.copytree(place / "pictures" / "3d_spatial", tmp_path / "in" / "3d_spatial").parent
    maps = root / "3d_spatial" / "labels" / "depth" / "3d_spatial" / "samples"
    maps.mkdir(parents=True)
    for index, name in enumerate(names_of("3d_spatial")):
        pixels = np.zeros((96, 96), np.uint8)
        pixels[-60:, -60:] = 255 * (index < 4)  # The lower right is nearer: of the sofa's box more.
        Image.fromarray(pixels).save(maps / name)
    assert run(place, tmp_path / "out", *arguments, pictures=root, categories=("3d_spatial",)) == 0
    scores = scores_of(tmp_path / "out", "3d_spatial/labels/annotation_obj_detection_3d")
    assert scores == [pytest.approx(0.25 * 1.7 + 0.5)] * 4 + [pytest.approx(0.25 * 1.7)] * 6


def test_complex_scores_are_three_in_one_and_take_what_the_benchmarks_scripts_wrote(place, tmp_path):
    root = shutil.copytree(place / "pictures" / "complex", tmp_path / "in" / "complex").parent
    (root / "complex" / "annotation_clip").mkdir()
    theirs = [{"question_id": i, "answer": 0.25 + i / 1000} for i in range(30)]
    (root / "complex" / "annotation_clip" / "vqa_result.json").write_text(json.dumps(theirs))
    out = tmp_path / "out"
    networks = ("--blip", place / "blip", "--detector", place / "detr")
    assert run(place, out, *networks, pictures=root, categories=("complex",)) == 0
    blip, clip = scores_of(out, "complex/annotation_blip"), scores_of(out, "complex/annotation_clip")
    spatial = scores_of(out, "complex/labels/annotation_obj_detection_2d")
    three = scores_of(out, "complex/annotation_3_in_1")
    assert clip == [entry["answer"] for entry in theirs]
    assert three[0] == pytest.approx((blip[0] + spatial[0]) / 2)  # In space alone.
    assert three[10] == pytest.approx((blip[10] + spatial[10] + clip[10]) / 3)
    assert three[20] == pytest.approx((blip[20] + clip[20]) / 2)  # Acting alone.
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["scores"]["complex"] == pytest.approx(np.mean(three))
    differs = {score: network["differs"] for score, network in result["networks"]["complex"].items()}
    assert "not its detector, Unified" in differs["spatial"] and "made elsewhere" in differs["clip"]
    # What it has written itself, it knows again.
    again = tmp_path / "again"
    root = shutil.copytree(out / "complex", tmp_path / "written" / "complex").parent
    shutil.copytree(place / "pictures" / "complex" / "samples", root / "complex" / "samples")
    assert run(place, again, pictures=root, categories=("complex",)) == 0
    repeated = json.loads((again / "result.json").read_text(encoding="utf-8"))
    assert repeated["networks"] == result["networks"] and repeated["scores"] == result["scores"]


def test_clip_scores_what_is_no_relation(place, tmp_path):
    out = tmp_path / "out"
    assert run(place, out, "--clip", GOLDEN / "extras" / "clip", categories=("non_spatial",)) == 0
    scores = scores_of(out, "non_spatial/annotation_clip")
    clip = ClipNetwork(GOLDEN / "extras" / "clip", batch_size=1, preprocessing="openai")
    text = clip.text_features(PROMPTS["non_spatial"])[0]
    for row in (0, 7):
        with Image.open(place / "pictures" / "non_spatial" / "samples" / names_of("non_spatial")[row]) as picture:
            assert scores[row] == pytest.approx(float(clip.image_features([picture])[0] @ text), abs=1e-5)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["scores"]["non_spatial"] == pytest.approx(np.mean(scores))
    assert result["networks"]["non_spatial"]["clip"]["differs"] == "not CLIP ViT-B/32"


def test_clip_sees_complex_prompts_without_their_adjectives(place):
    scorer = ClipScorer(ClipNetwork(GOLDEN / "extras" / "clip", batch_size=1), English())
    pictures = Pictures("complex", place / "pictures" / "complex", ("The red hat was on top of the brown coat rack.",))
    assert scorer._text(pictures, 0) == "The hat was on top of the coat rack ."


def test_pictures_are_drawn_as_the_benchmark_names_them(place, weights, tmp_path, capsys):
    arguments = ("--checkpoint", weights, "--num-steps", "1", "--draw-batch-size", "8")
    assert run(place, tmp_path / "out", *arguments, pictures=None) == 0
    assert "name --blip" in capsys.readouterr().out
    samples = tmp_path / "out" / "color" / "samples"
    assert sorted(path.name for path in samples.iterdir()) == names_of("color")  # Nothing else: their scripts list it.
    texts = [read_text(samples / name) for name in names_of("color")]
    assert [text["seed"] for text in texts] == [str(seed) for seed in range(42, 52)]
    assert {text["prompt"] for text in texts} == set(PROMPTS["color"])
    assert run(place, tmp_path / "out", *arguments, "--blip", place / "blip", pictures=None) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["pictures"]["color"]["drawn"]["num_steps"] == 1 and 0 < result["scores"]["color"] < 1


def test_bad_input_is_refused(place, found, tmp_path, capsys):
    blip = ("--blip", place / "blip")
    few = shutil.copytree(place / "pictures" / "color", tmp_path / "few" / "color").parent
    for name in names_of("color")[2:6]:
        (few / "color" / "samples" / name).unlink()
    empty = shutil.copytree(place / "dataset", tmp_path / "empty")
    (empty / "color_val.txt").write_text("\n")
    (empty / "spatial_val.txt").write_text("a cat/dog near a sofa\n")
    (empty / "shape_val.txt").write_text("a\n\nb\n")
    parted = shutil.copytree(place / "dataset", tmp_path / "parted")
    (parted / "complex_val_spatial.txt").unlink()
    other = detections_of("spatial")
    other["pictures"] = {f"x{name}": value for name, value in other["pictures"].items()}
    damaged = detections_of("spatial")
    damaged["pictures"][names_of("spatial")[1]]["boxes"] = [[1, 2]]
    spatial = {"categories": ("spatial",)}
    for said, more, named in [
        ("lacks 4 of 10 pictures: 'a red cat and a blue dog_000002.png'", blip, {"pictures": few}),
        ("samples cannot be read", blip, {"categories": ("shape",)}),
        ("texture_val.txt cannot be read", blip, {"categories": ("texture",)}),
        ("color_val.txt holds no prompt", (*blip, "--compbench", empty), {}),
        ("shape_val.txt, line 2: is empty", (*blip, "--compbench", empty), {"categories": ("shape",)}),
        ("'/' cannot stand in a picture's name", (*blip, "--compbench", empty), spatial),
        ("color needs --blip DIR, or", (), {}),
        (
            "it lacks 20, the first 'a cat near a sofa_000000.png' and has 20 others",
            ("--detections", found(other)),
            spatial,
        ),
        ("boxes is [[1, 2]]", ("--detections", found(damaged)), spatial),
        ('category is "spatial"', ("--detections", found(detections_of("spatial"))), {}),
        ("is a DetrForObjectDetection, not a BlipForQuestionAnswering", ("--blip", place / "detr"), {}),
        ("is a BlipForQuestionAnswering, not an object detector", ("--detector", place / "blip"), spatial),
        ("complex_val_spatial.txt cannot be read", (*blip, "--compbench", parted), {"categories": ("complex",)}),
        ("--blip: none of --categories spatial needs it", (*blip, "--detector", place / "detr"), spatial),
        ("--detector: none of --categories color needs it", (*blip, "--detector", place / "detr"), {}),
        ("--num-steps, --keep-loaded: say how pictures are drawn", (*blip, "--num-steps", "3", "--keep-loaded"), {}),
        ("name either PICTURES", (*blip, "--checkpoint", place), {}),
        ("--compbench and --out are needed", None, {}),
        ("count from 0", (*blip, "--process-index", "3"), {}),
        ("--batch-size 0: is too small", (*blip, "--batch-size", "0"), {}),
    ]:
        given = command.main(["--suite", "compbench"]) if more is None else run(place, tmp_path / "out", *more, **named)
        assert given == 2 and said in capsys.readouterr().err, said
    assert not (tmp_path / "out").exists()
    scores = few / "color" / "annotation_blip" / "vqa_result.json"
    scores.parent.mkdir()
    shutil.copytree(place / "pictures" / "color" / "samples", few / "color" / "samples", dirs_exist_ok=True)
    for content, said in [('[{"question_id": 0, "answer": "0.5"}]', "scores of 1 pictures"), ("[1]", "is no list of")]:
        scores.write_text(content)
        assert run(place, tmp_path / "out", pictures=few) == 2
        assert said in capsys.readouterr().err
