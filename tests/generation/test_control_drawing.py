"""Pictures are drawn after control pictures: each prompt after its own, of their size, and by one command."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_cases import GOLDEN
from PIL import Image
from skimage import data

from pixart_jax.conversion.control import Control
from pixart_jax.conversion.controlnet_files import write_controlnet
from pixart_jax.conversion.stored import StoredParams, read_stored_model
from pixart_jax.data.prompt_lists import seed_of
from pixart_jax.encoding.edges import CannyEdges, open_edges
from pixart_jax.errors import InputError
from pixart_jax.generation.control import ControlNetFile, control_condition
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.studio.jobs import Followed, Job
from pixart_jax.studio.models import Models
from pixart_jax.studio.studio import Studio
from tools import sample
from tools.evaluate import command as evaluate

PROMPTS = ["a red cat on a mat", "the small blue fox"]
SETTINGS = {"num_steps": 2, "seed": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pictures():
    """Of the aspect ratios 1 and 3:2."""
    return data.astronaut(), data.chelsea()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """ControlNets for the tiny Σ: `start`, which changes nothing, and `edges`, of random numbers."""
    root = tmp_path_factory.mktemp("controlnets")
    model = read_stored_model(weights).model
    base = {}
    for path, array in StoredParams(weights / "params", model).read_all().items():
        node = base
        *parents, name = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    params = jax.tree.map(np.asarray, copy_blocks(base, 1))
    rng = np.random.default_rng(0)
    for name, tree in (
        ("start", params),
        ("edges", jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32), params)),
    ):
        flat = flatten_dict(tree, sep="/")
        write_controlnet(root / name, Control(1, list(flat), flat.get))
    return root


@pytest.fixture(scope="module")
def pipeline(weights, folder):
    return TextToImage.from_checkpoint(weights, adapters=[ControlNetFile(folder / "edges")])


def draw(pipeline, prompts, pictures, scale=1.0, **settings):
    request = Request(prompts, **SETTINGS | settings)
    control = control_condition(pipeline, request, pictures, CannyEdges(), scale)
    return pipeline.draw(dataclasses.replace(request, conditions=control))


def test_each_prompt_follows_its_own_picture(pipeline, pictures):
    both = draw(pipeline, PROMPTS, pictures, num_images=2)
    for i, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        alone = draw(pipeline, [prompt], [picture], batch_size=1)
        assert np.abs(both[2 * i].astype(int) - alone[0]).max() <= 1
    same = draw(pipeline, PROMPTS, pictures[:1], batch_size=1)
    assert np.abs(same[0].astype(int) - both[0]).max() <= 1
    assert np.abs(same[1].astype(int) - both[2]).max() > 5
    assert np.abs(draw(pipeline, PROMPTS[:1], pictures[:1], 0.5, batch_size=1)[0].astype(int) - both[0]).max() > 1


def test_at_the_start_it_changes_nothing(weights, folder, pictures):
    plain = TextToImage.from_checkpoint(weights)
    begun = TextToImage.from_checkpoint(weights, adapters=[ControlNetFile(folder / "start")])
    expected = plain(PROMPTS[:1], **SETTINGS)
    assert np.abs(draw(begun, PROMPTS[:1], pictures[:1]).astype(int) - expected).max() <= 1


def test_what_is_missing_or_too_much_is_refused(pipeline, weights, pictures):
    with pytest.raises(InputError, match=r"the condition control is missing: .*--control"):
        pipeline(PROMPTS)
    with pytest.raises(InputError, match="2 control pictures for 1 prompts"):
        draw(pipeline, PROMPTS[:1], pictures)
    with pytest.raises(InputError, match="the condition control is what no adapter"):
        TextToImage.from_checkpoint(weights)(PROMPTS, conditions={"control": np.zeros((2, 256, 16))})
    with pytest.raises(InputError, match="of 1 pictures, not of 2"):
        pipeline(PROMPTS, conditions={"control": np.zeros((1, 256, 16))})
    with pytest.raises(InputError, match="control must be finite"):
        pipeline(PROMPTS, conditions={"control": np.full((2, 256, 16), np.nan)})
    with pytest.raises(InputError, match="HED's edges need its weights"):
        open_edges("hed", None, option="--hed")


def test_int8_is_refused_whichever_is_laid_over_the_model_first(weights, folder):
    """Its copies run blocks of the model, whose kernels they would take for what they are not."""
    with pytest.raises(InputError, match="int8: a ControlNet runs blocks of the model itself"):
        TextToImage.from_checkpoint(weights, int8="weights", adapters=[ControlNetFile(folder / "edges")])
    base = TextToImage.from_checkpoint(weights, int8="weights")
    with pytest.raises(InputError, match="int8: a ControlNet runs blocks of the model itself"):
        Models.of(base, {}, folder / "edges", CannyEdges())


def test_a_command_draws(weights, folder, pictures, tmp_path, capsys):
    Image.fromarray(pictures[1]).save(tmp_path / "cat.png")
    arguments = [
        "--checkpoint",
        str(weights),
        "--prompt",
        PROMPTS[0],
        "--num-steps",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--controlnet", str(folder / "edges"), "--control", str(tmp_path / "cat.png")]
    assert sample.main([*arguments, "--control-kind", "canny"]) == 0
    (path,) = (tmp_path / "out").glob("000_*.png")
    with Image.open(path) as image:
        # 451×300, whose nearest bucket of 256 px this is.
        assert image.size == (304, 208)
        assert image.text["control_kind"] == "canny" and image.text["controlnet"].startswith("edges (")
        assert len(image.text["control"]) == 16 and image.text["control_scale"] == "1.0"
    capsys.readouterr()
    assert sample.main([*arguments, "--control-kind", "canny"]) == 0
    assert "nothing to draw" in capsys.readouterr().out

    def refused(message, *options):
        assert sample.main([*options, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()

    plain = [*arguments[:6]]
    refused("--control-kind says what is made of", *arguments)
    refused("HED's edges need its weights: name ControlNetHED.pth (--hed)", *arguments, "--control-kind", "hed")
    refused("--control-scale 2: must lie in [0, 1]", *arguments, "--control-kind=canny", "--control-scale=2")
    refused("--controlnet needs a control picture", *plain, "--controlnet", str(folder / "edges"))
    alone = [*plain, "--control", str(tmp_path / "cat.png"), "--control-kind=none"]
    refused("trains none; name one (--controlnet)", *alone)
    refused("holds no ControlNet", *plain, *arguments[10:], "--controlnet", str(tmp_path), "--control-kind=canny")


def test_an_evaluation_draws_each_prompt_after_its_own_picture(weights, folder, pictures, pipeline, tmp_path, capsys):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = ["--checkpoint", str(weights), "--prompts", str(tmp_path / "prompts.txt"), "--num-steps", "2"]
    arguments += ["--metrics", "clip_score", "--clip", str(GOLDEN / "extras" / "clip"), "--aspect-ratio", "1:1"]
    arguments += ["--guidance-scale", "3", "--pictures-per-unit", "1", "--draw-batch-size", "1", "--num-threads", "1"]
    control = ["--controlnet", str(folder / "edges"), "--control", *map(str, files), "--control-kind", "canny"]
    assert evaluate.main([*arguments, *control, "--out", str(tmp_path / "out")]) == 0
    drawn = tmp_path / "out" / "pictures" / "guidance-3"
    recipe = json.loads((drawn / "recipe.json").read_text())
    assert recipe["control_kind"] == "canny" and recipe["controlnet"].startswith("edges (")
    for i, prompt in enumerate(PROMPTS):
        expected = draw(pipeline, [prompt], [pictures[i]], batch_size=1, aspect_ratio="1:1", seed=seed_of(0, i))
        assert np.abs(np.asarray(Image.open(drawn / f"{i:06d}.png")).astype(int) - expected[0]).max() <= 1
    # With the other one's picture it is another folder's.
    control[3:5] = control[4:2:-1]
    capsys.readouterr()
    assert evaluate.main([*arguments, *control, "--out", str(tmp_path / "out")]) == 2
    assert "begun with other" in capsys.readouterr().err
    for given, said in [
        (["--control", str(files[0]), "--control-kind", "none"], "trains none; name one (--controlnet)"),
        ([*control[:5], str(files[0]), *control[5:]], "3 pictures for 2 prompts"),
    ]:
        assert evaluate.main([*arguments, *given, "--out", str(tmp_path / "no")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_studio_draws_after_edges_and_without_them(weights, folder, pipeline, pictures, tmp_path):
    base = TextToImage.from_checkpoint(weights, keep_loaded=True)
    studio = Studio(Models.of(base, {}, folder / "edges", CannyEdges()), tmp_path)
    given = {"prompt": PROMPTS[0]} | SETTINGS
    try:
        followed = studio.submit(Job(studio.settings(given), control=Followed(pictures[1])))
        plain = studio.submit(Job(studio.settings(given)))
        drawn = [np.asarray(Image.open(job.wait().pictures[0].path), int) for job in (followed, plain)]
    finally:
        studio.close()
    assert np.abs(drawn[0] - draw(pipeline, PROMPTS[:1], pictures[1:], aspect_ratio=(451, 300))[0]).max() <= 1
    assert drawn[0].shape != drawn[1].shape == (256, 256, 3)
    edges = studio.models.control.edges(studio.request(followed), pictures[1])
    assert edges.dtype == np.uint8 and edges.shape == drawn[0].shape and edges.max() == 255
