"""A list of prompts becomes a folder of pictures: killed, shared, gone on with, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from owners import held_elsewhere
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.generation.picture_lists import CAPTIONS, RECIPE, Wanted, draw_list, read_text
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request

PROMPTS = ["a red cat", "a blue dog", "a red cat", "the fog", "ein Käse, 小猫"]
WANTED = [Wanted(f"{'deeper/' * (i % 2)}{i}.png", prompt, 7 + i) for i, prompt in enumerate(PROMPTS)]
SETTINGS = {"num_steps": 2, "batch_size": 2}
REQUEST = Request("", **SETTINGS)


@pytest.fixture(scope="module")
def pipeline(weights):
    return TextToImage.from_checkpoint(weights)


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """The list drawn at once."""
    folder = tmp_path_factory.mktemp("lists") / "whole"
    draw_list(pipeline, WANTED, folder, REQUEST, per_group=2)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def pixels(path):
    return np.asarray(Image.open(path), int)


def test_a_picture_depends_on_its_own_prompt_and_seed(pipeline, whole):
    assert contents(whole).keys() == {one.name for one in WANTED}
    for one in (WANTED[0], WANTED[3]):
        alone = pipeline(one.prompt, seed=one.seed, **SETTINGS)[0].astype(int)
        assert np.abs(pixels(whole / one.name) - alone).max() <= 1
    # One prompt twice, of two seeds.
    assert np.abs(pixels(whole / WANTED[0].name) - pixels(whole / WANTED[2].name)).max() > 6
    by_seed = pipeline(PROMPTS[:2], seed=[4, 5], num_images=2, **SETTINGS).astype(int)
    for i, seed in enumerate((4, 5)):
        alone = pipeline(PROMPTS[i], seed=seed, num_images=2, **SETTINGS)
        assert np.abs(by_seed[2 * i : 2 * i + 2] - alone).max() <= 1


def test_the_folder_says_what_it_is_of(whole):
    recipe = json.loads((whole / RECIPE).read_text(encoding="utf-8"))
    assert recipe["sampler"] == "dpm-solver" and recipe["num_steps"] == 2 and recipe["pictures"] == 5
    assert recipe["height"] == recipe["width"] == recipe["size"] == 256 and len(recipe["weights"]) == 8
    captions = json.loads((whole / CAPTIONS).read_text(encoding="utf-8"))
    assert captions == {one.name: one.prompt for one in WANTED}
    text = read_text(whole / WANTED[4].name)
    assert text["prompt"] == PROMPTS[4] and text["seed"] == "11" and text["weights"] == recipe["weights"]
    assert text == Image.open(whole / WANTED[4].name).text


def test_a_killed_one_goes_on_with_the_same_pictures(pipeline, whole, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "mine.txt").write_text("left alone")
    (folder / "mine.png").write_bytes(b"left alone")

    def interrupt(stage, done, total):
        if stage == "decoding" and done == 1 and (folder / "2.png").exists():
            raise KeyboardInterrupt  # The second group has one of its two pictures.

    with pytest.raises(KeyboardInterrupt):
        draw_list(pipeline, WANTED, folder, REQUEST, per_group=2, progress=interrupt)
    assert 2 < len(contents(folder)) < 5 + 1
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:-20])  # As after a crash of the machine.
    kept = (folder / WANTED[1].name).stat().st_mtime_ns
    seen = []
    for index in (1, 0):
        report = lambda *told: seen.append(told)  # noqa: E731
        draw_list(pipeline, WANTED, folder, REQUEST, per_group=2, process_index=index, process_count=2, progress=report)
    assert [told for told in seen if told[0] == "drawn"] == [("drawn", 2, 2), ("drawn", 2, 3), ("drawn", 3, 3)]
    assert (folder / WANTED[1].name).stat().st_mtime_ns == kept
    assert (folder / "mine.png").read_bytes() == b"left alone"
    found = contents(folder)
    del found["mine.png"]
    assert found == contents(whole)


def test_other_settings_are_refused(pipeline, whole):
    before = contents(whole)
    for change, said in [
        ({"guidance_scale": 2.0}, "guidance_scale: 4.5 there, 2.0 now"),
        ({"num_steps": 3}, "num_steps"),
        ({"negative_prompt": "fog"}, "negative_prompt"),
        ({"aspect_ratio": "2:1"}, "height"),
    ]:
        with pytest.raises(InputError, match="holds pictures drawn otherwise(.|\n)*" + said):
            draw_list(pipeline, WANTED, whole, Request("", **SETTINGS | change))
    with pytest.raises(InputError, match="prompts"):
        draw_list(pipeline, [*WANTED[:4], Wanted("4.png", "another", 11)], whole, REQUEST)

    halved = jax.tree.map(lambda leaf: leaf / 2, pipeline.parts.weights())
    other = TextToImage(dataclasses.replace(pipeline.parts, weights=lambda: halved))
    with pytest.raises(InputError, match="weights: '"):
        draw_list(other, WANTED, whole, REQUEST)
    with held_elsewhere(whole / ".locks" / "0-of-1"), pytest.raises(InputError, match="another process"):
        draw_list(pipeline, WANTED, whole, REQUEST)
    assert contents(whole) == before


def test_what_is_no_list_is_refused_before_anything_is_written(pipeline, tmp_path):
    folder = tmp_path / "pictures"
    for wanted, request, said in [
        ([], REQUEST, "is empty"),
        ([Wanted("a.jpg", "x", 0)], REQUEST, "ends in .png"),
        ([Wanted("../a.png", "x", 0)], REQUEST, "below the folder"),
        ([Wanted("/a.png", "x", 0)], REQUEST, "below the folder"),
        ([Wanted("a.png", "x", 0), Wanted("a.png", "y", 1)], REQUEST, "of two pictures"),
        ([Wanted("a.png", "x", -1)], REQUEST, "the seed of a.png"),
        ([Wanted("a.png", None, 0)], REQUEST, r"prompts\[0\] must be a caption"),
        (WANTED, Request("", num_images=2), "one of each prompt"),
        (WANTED, Request(["", ""], negative_prompt=["a", "b"]), "one negative prompt"),
    ]:
        with pytest.raises(InputError, match=said):
            draw_list(pipeline, wanted, folder, request)
    with pytest.raises(InputError, match="counted from 0"):
        draw_list(pipeline, WANTED, folder, REQUEST, process_index=2, process_count=2)
    assert not folder.exists()
    (folder / "deeper").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / WANTED[1].name)
    with pytest.raises(InputError, match=r"deeper/1.png is there, and was not drawn for this list"):
        draw_list(pipeline, WANTED, folder, REQUEST)
    assert not (folder / RECIPE).exists()
