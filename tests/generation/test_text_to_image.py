"""Whole pipelines of PixArt-α and PixArt-Σ draw what diffusers draws, in any batch, on any number of devices."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import PIPELINES, WORDS, make_pipeline, save
from tiny_run import run_python

from pixart_jax.encoding.tokenizer import load_tokenizer
from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import choose_canvas
from pixart_jax.generation.pipeline import TextToImage
from tools import convert, sample

PROMPTS = ["a red cat on a mat", "the small blue fox"]
SETTINGS = {"num_steps": 4, "sampler": "dpm-solver-diffusers"}


class Pair(NamedTuple):
    """A pipeline of diffusers, the directory that it is converted to, and that directory opened."""

    reference: Any
    weights: pathlib.Path
    ours: TextToImage


def make_pair(folder, family, **transformer):
    reference, weights = make_pipeline(family, **transformer), folder / "weights"
    assert convert.main([str(save(reference, folder / "pipeline")), str(weights)]) == 0
    return Pair(reference, weights, TextToImage.from_checkpoint(weights))


def reference_pictures(pipeline, prompts, noise, *, num_steps=SETTINGS["num_steps"], **settings):
    """uint8[n, H, W, 3] of diffusers from noise f32[n, h, w, C]."""
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    images = pipeline(prompts, latents=latents, num_inference_steps=num_steps, output_type="np", **settings)
    return np.rint(images.images * 255).astype(np.uint8)


def noise(count, height, width):
    return np.random.default_rng(0).standard_normal((count, height // 8, width // 8, 4)).astype(np.float32)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert expected.std() > 20  # a real picture, not grey
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


@pytest.fixture(scope="module")
def sigma(weights):
    reference = PIPELINES["sigma"].from_pretrained(weights.parent / "pipeline")
    reference.set_progress_bar_config(disable=True)
    return Pair(reference, weights, TextToImage.from_checkpoint(weights))


@pytest.fixture(scope="module")
def alpha(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("alpha"), "alpha", sample_size=32)


def test_sigma_draws_what_diffusers_draws(sigma):
    reference, _, ours = sigma
    start = noise(2, 256, 256)
    expected = reference_pictures(reference, PROMPTS, start, clean_caption=False)
    assert_same(ours(PROMPTS, noise=start, **SETTINGS), expected)
    # Another aspect ratio, a negative prompt, another guidance scale.
    start = noise(2, 192, 336)
    settings = {"negative_prompt": "green circle", "guidance_scale": 2.0}
    expected = reference_pictures(reference, PROMPTS, start, height=192, width=336, clean_caption=False, **settings)
    assert_same(ours(PROMPTS, noise=start, aspect_ratio="16:9", **SETTINGS, **settings), expected)


def test_alpha_draws_what_diffusers_draws(alpha):
    """Captions are cleaned on the way: what a user types is not what the model reads."""
    reference, _, ours = alpha
    start = noise(2, 256, 256)
    prompts = ["A RED cat <br> on a_mat...", "see http://cats.com/blue.html, a small (blue) fox"]
    expected = reference_pictures(reference, prompts, start)
    found = ours(prompts, noise=start, **SETTINGS)
    assert_same(found, expected)
    assert np.abs(ours(PROMPTS, noise=start, **SETTINGS).astype(int) - expected).max() > 5


def test_micro_conditions_draw_what_diffusers_draws(tmp_path):
    """Which PixArtAlphaPipeline gives at 1024 px only. 1280×768 is exactly its label, 0.6, which ours passes."""
    fields = {"sample_size": 128, "use_additional_conditions": True, "interpolation_scale": 2}
    reference, _, ours = make_pair(tmp_path, "alpha", **fields)
    start, two, size = noise(1, 768, 1280), SETTINGS | {"num_steps": 2}, {"height": 720, "width": 1200}
    exact = {"use_resolution_binning": False, "height": 768, "width": 1280}
    expected = reference_pictures(reference, PROMPTS[:1], start, num_steps=2, **exact)
    assert_same(ours(PROMPTS[:1], noise=start, aspect_ratio="5:3", **two), expected)
    cropped = ours(PROMPTS[:1], noise=start, **two, **size)
    theirs = reference_pictures(reference, PROMPTS[:1], start, num_steps=2, **size)
    assert cropped.shape == theirs.shape == (1, 720, 1200, 3)
    # Bicubic on bytes here, bilinear on floats there.
    assert np.abs(cropped.astype(int) - theirs).mean() < 3


def test_one_compilation_serves_prompts_scales_seeds_and_aspect_ratios(sigma, compilations):
    ours = sigma.ours
    calls = [
        {"prompts": PROMPTS, "seed": 1},
        {"prompts": PROMPTS[::-1], "guidance_scale": 1.5, "aspect_ratio": "16:9"},
        {"prompts": ["x", ""], "negative_prompt": "fog", "aspect_ratio": "1:2"},
        {"prompts": ["y"], "num_images": 2, "height": 100, "width": 90},
    ]
    for call in calls:
        ours(**call, num_steps=5, batch_size=2)
    # An earlier test may have drawn with it.
    assert compilations.count("jit(sample_step)") <= 1, compilations
    # Two captions at a time, or, with the negative one, four.
    assert compilations.count("jit(_features)") <= 2, compilations


def pictures(folder):
    return {path.name: np.asarray(Image.open(path), int) for path in sorted(folder.glob("0*.png"))}


def test_the_same_pictures_on_one_device_and_on_four(sigma, tmp_path):
    arguments = ["--checkpoint", sigma.weights, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--num-images=3"]
    arguments += ["--num-steps=3", "--sampler=iddpm", "--seed=5", "--aspect-ratio=2:3"]
    run_python("-m", "tools.sample", *arguments, "--out", tmp_path / "one", "--batch-size=3", devices=1)
    # Two and two of which have a picture together.
    run_python("-m", "tools.sample", *arguments, "--out", tmp_path / "four", "--mesh=context=2", devices=4)
    one, four = pictures(tmp_path / "one"), pictures(tmp_path / "four")
    assert len(one) == 6 and one.keys() == four.keys()
    assert max(np.abs(one[name] - four[name]).max() for name in one) <= 1
    assert np.abs(one["000_a-red-cat-on-a-mat.png"] - one["001_a-red-cat-on-a-mat.png"]).max() > 20


def test_command_line(sigma, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red cat\n\nein Käse, 小猫\n")
    arguments = ["--checkpoint", sigma.weights, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    arguments = [*map(str, arguments), "--num-steps=2", "--height=100", "--width=160", "--negative-prompt=fog"]
    assert sample.main(arguments) == 0
    names = ["000_a-red-cat.png", "001_ein-k-se.png", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    picture = Image.open(tmp_path / "out" / names[1])
    assert picture.size == (160, 100)
    assert picture.text == {
        "prompt": "ein Käse, 小猫", "negative_prompt": "fog", "image": "0", "seed": "0", "sampler": "dpm-solver",
        "num_steps": "2", "guidance_scale": "4.5", "size": "256", "height": "100", "width": "160",
        "checkpoint": "weights",
    }  # fmt: skip
    assert "2 picture(s)" in capsys.readouterr().out

    # Started again, it draws what is missing, damaged or made with other settings, and nothing else.
    before = pictures(tmp_path / "out")
    os.truncate(tmp_path / "out" / names[0], 2000)
    assert sample.main(arguments) == 0
    captured = capsys.readouterr()
    assert "1 picture(s)" in captured.out and "1 of 2 prompts are drawn already" in captured.err
    after = pictures(tmp_path / "out")
    assert all(np.abs(before[name] - after[name]).max() <= 1 for name in before)
    assert sample.main([*arguments, "--seed=1"]) == 0
    assert "2 picture(s)" in capsys.readouterr().out


def test_what_the_model_reads_of_a_long_caption(sigma, caplog):
    ours = sigma.ours
    text = "red " * 90 + "fox " * 50_000
    with caplog.at_level(logging.WARNING):
        ids, length = ours.parts.encode_text.__self__.tokenize([text, "red"])
    assert length[0] == 300 and ids.shape == (2, 300) and ids[0, -1] == ids[1, length[1] - 1]
    assert "the model reads 300" in caplog.text and "fox" in caplog.text
    assert "and 199," in caplog.text and len(caplog.text) < 600


@pytest.mark.parametrize(
    "call,message",
    [
        ({"num_images": 0}, "num_images = 0: must be at least 1"),
        ({"size": 300}, "size 300: must be one of 256, 512"),
        ({"height": 100}, "height and width go together"),
        ({"height": 100, "width": 100, "aspect_ratio": "1:1"}, "not both"),
        ({"aspect_ratio": "16/9"}, "must be WIDTH:HEIGHT"),
        ({"aspect_ratio": "0:9"}, "must be WIDTH:HEIGHT"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"noise": np.zeros((1, 2, 3, 4))}, r"these pictures start from \(2, 32, 32, 4\)"),
    ],
)
def test_what_is_refused(sigma, call, message):
    ours = sigma.ours
    with pytest.raises(InputError, match=message):
        ours(**{"prompts": PROMPTS, "num_steps": 1} | call)


def test_parts_that_are_missing_or_of_another_model(sigma, alpha, tmp_path):
    weights, other = sigma.weights, alpha.weights

    def refused(message, directory=weights, **options):
        with pytest.raises(InputError, match=message):
            TextToImage.from_checkpoint(directory, **options)

    refused("another autoencoder.*0.18215, the model's 0.13025", vae=other / "vae")
    refused("leave out --ema", ema=True)
    refused("is not the workdir of a run", directory=tmp_path)
    shutil.copytree(weights, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/text_encoder")
    refused("text_encoder does not exist.*--text-encoder", directory=tmp_path / "copy")
    # With one of another model's directory it works, because both were saved from the same T5.
    assert TextToImage.from_checkpoint(tmp_path / "copy", text_encoder=other / "text_encoder")
    shutil.copytree(weights / "text_encoder", tmp_path / "t5")
    config = json.loads((tmp_path / "t5/config.json").read_text())
    (tmp_path / "t5/config.json").write_text(json.dumps(config | {"d_model": 24}))
    refused("features 24 wide, the model of .* takes 20", text_encoder=tmp_path / "t5")
    shutil.rmtree(tmp_path / "t5/tokenizer")
    refused("has no tokenizer", text_encoder=tmp_path / "t5")
    (tmp_path / "t5/tokenizer").mkdir()
    (tmp_path / "t5/tokenizer/spiece.model").write_bytes(b"no model")
    refused("tokenizer is no tokenizer of T5's", text_encoder=tmp_path / "t5")


def test_the_released_tokenizers_files(tmp_path):
    """PixArt's repositories hold SentencePiece's own format and no tokenizer.json."""
    import sentencepiece

    (tmp_path / "text").write_text("\n".join(WORDS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    tokenizer = load_tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    for caption in (*WORDS, ""):
        assert tokenizer([caption]) == [[*pieces.encode(caption), 1]]


@pytest.mark.parametrize(
    "resolution,settings,expected",
    [
        (1024, {}, (1.0, 1024, 1024, 1024, 1024)),
        (1024, {"aspect_ratio": "16:9"}, (0.57, 768, 1344, 768, 1344)),
        (1024, {"aspect_ratio": "2.39:1"}, (0.42, 640, 1536, 640, 1536)),
        (512, {"size": 1024, "height": 1080, "width": 1920}, (0.57, 768, 1344, 1080, 1920)),
        (32, {}, (1.0, 32, 32, 32, 32)),
    ],
)
def test_canvas(resolution, settings, expected):
    canvas = choose_canvas(resolution, **settings)
    assert (*dataclasses.astuple(canvas.bucket), canvas.height, canvas.width) == expected
    assert canvas.size == settings.get("size", resolution)


def test_bfloat16_halves_the_kernels_and_changes_nothing_else(sigma):
    """Matrix products round kernels to bfloat16 anyway; everything else stays as it is stored."""
    full, half = sigma.ours, TextToImage.from_checkpoint(sigma.weights, dtype=jnp.bfloat16)
    dtypes = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (path[-1].key == "kernel", str(leaf.dtype)), half.parts.weights()
    )
    assert set(jax.tree.leaves(dtypes, is_leaf=lambda x: isinstance(x, tuple))) == {
        (True, "bfloat16"),
        (False, "float32"),
    }
    settings = {"num_steps": 3, "seed": 2}
    mixed = dataclasses.replace(half.parts, weights=full.parts.weights)
    pictures = half(PROMPTS, **settings)
    np.testing.assert_array_equal(pictures, TextToImage(mixed)(PROMPTS, **settings))
    assert 0 < np.abs(pictures.astype(int) - full(PROMPTS, **settings)).mean() < 8
