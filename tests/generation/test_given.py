"""tools.sample draws from picture files, and refuses those that do not fit before it opens a model."""

import re

import numpy as np
import pytest
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.generation.given import Given, read_given, read_mask
from tools import sample

SHAPE = {"size": None, "aspect_ratio": None, "height": None, "width": None}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture, a mask of its right half, and files that do not fit."""
    folder = tmp_path_factory.mktemp("given")
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    mask = np.zeros((120, 200), np.uint8)
    mask[:, 100:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask * 0).save(folder / "black.png")
    Image.fromarray(mask[:100]).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_bad_input_is_refused_before_a_model_is_opened(files, tmp_path, capsys):
    image, mask = ["--image", str(files / "picture.png")], ["--mask", str(files / "mask.png")]
    for options, message in (
        (["--image", str(files / "none.png")], "none.png cannot be read: No such file"),
        (["--image", str(files / "broken.png")], "--image .*broken.png cannot be used: damaged"),
        (["--image", str(files)], "cannot be read: Is a directory; --image takes a picture"),
        ([*image, "--mask", str(files / "black.png")], "black.png is all black, so that nothing would be drawn anew"),
        ([*image, "--mask", str(files / "small.png")], "small.png has 200x100 pixels, the picture 200x120"),
        (mask, "--mask needs --image"),
        (["--strength", "0.5"], "--strength needs --image"),
        ([*image, "--paste-back"], "--paste-back needs --mask"),
        ([*image, "--reference", str(files / "picture.png")], "--image and --reference do not go together"),
        ([*image, "--strength", "0"], r"--strength = 0: must lie in \(0, 1\]"),
        ([*image, "--strength", "1.1"], r"--strength = 1.1: must lie in \(0, 1\]"),
        ([*image, "--strength", "nan"], "--strength = nan: must be a finite number"),
    ):
        arguments = ["--checkpoint", str(tmp_path / "none"), "--prompt", "x", "--out", str(tmp_path / "out"), *options]
        assert sample.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        assert re.search(message, error), (message, error)
        assert not (tmp_path / "out").exists()


def test_white_begins_at_half_the_brightness(tmp_path):
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", "--mask", np.zeros((1, 4, 3), np.uint8))
    np.testing.assert_array_equal(found, [[False, False, True, True]])
    # A mask of zeros and ones is black to the eye, and its owner thinks it is not.
    Image.fromarray(levels // 255).save(tmp_path / "ones.png")
    with pytest.raises(InputError, match=r"ones\.png is dark, 1 of 255 at most, so that nothing would be drawn anew"):
        read_mask(tmp_path / "ones.png", "--mask", np.zeros((1, 4, 3), np.uint8))


def test_without_a_mask_the_picture_is_near_and_with_one_it_is_drawn_anew(files):
    assert read_given(None) is None
    assert read_given(files / "picture.png").strength == 0.6
    masked = read_given(files / "picture.png", files / "mask.png", keep_pixels=True)
    assert (masked.strength, masked.keep_pixels, int(masked.mask.sum())) == (1.0, True, 120 * 100)


def test_the_picture_says_the_shape_where_nobody_does():
    pixels, mask = np.zeros((120, 200, 3), np.uint8), np.ones((120, 200), bool)
    assert Given(pixels).shape(SHAPE, 256)["aspect_ratio"] == (200, 120)
    assert Given(pixels).shape(SHAPE, 64) == SHAPE
    assert Given(pixels).shape(SHAPE | {"aspect_ratio": "1:1"}, 256)["aspect_ratio"] == "1:1"
    kept = Given(pixels, mask, keep_pixels=True).shape(SHAPE, 256)
    assert (kept["height"], kept["width"]) == (120, 200)
    beside = Given(pixels, is_reference=True)
    assert beside.shape(SHAPE | {"height": 90, "width": 70}, 256)["width"] == 140
    assert np.divide(*beside.shape(SHAPE, 256)["aspect_ratio"]) == pytest.approx(400 / 120)
    with pytest.raises(InputError, match="a reference needs a canvas twice as wide, and there are no aspect ratios at"):
        beside.shape(SHAPE, 64)


def test_command_line(files, weights, tmp_path, capsys):
    common = ["--checkpoint", str(weights), "--prompt", "a cat", "--num-steps", "2", "--seed", "3"]
    picture, mask = (np.asarray(Image.open(files / name)) for name in ("picture.png", "mask.png"))
    painted = [*common, "--image", str(files / "picture.png"), "--mask", str(files / "mask.png"), "--paste-back"]
    painted += ["--out", str(tmp_path / "painted")]
    assert sample.main(painted) == 0
    drawn = Image.open(tmp_path / "painted/000_a-cat.png")
    pixels = np.asarray(drawn)
    assert pixels.shape == picture.shape and (pixels[mask == 0] == picture[mask == 0]).all()
    assert np.abs(pixels[mask > 0].astype(int) - picture[mask > 0]).max() > 20
    assert drawn.text["strength"] == "1.0" and drawn.text["paste_back"] == "True"
    capsys.readouterr()
    assert sample.main(painted) == 0
    assert "nothing to draw" in capsys.readouterr().out
    # Another strength is another picture.
    assert sample.main([*painted, "--strength", "0.5"]) == 0
    assert "1 picture(s)" in capsys.readouterr().out
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "painted/000_a-cat.png")), pixels)

    beside = [*common, "--reference", str(files / "picture.png"), "--aspect-ratio", "1:1", "--guidance", "none"]
    assert sample.main([*beside, "--out", str(tmp_path / "beside")]) == 0
    right = Image.open(tmp_path / "beside/000_a-cat.png")
    assert right.size == (176, 176) and right.text["guidance"] == "none" and "guidance_scale" not in right.text
