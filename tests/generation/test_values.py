"""What callers give in other forms than the usual one is taken where it is clear, and refused in one line elsewhere."""

import inspect
import pydoc

import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import parse_aspect_ratio
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request, Start


@pytest.mark.parametrize(
    "given,expected",
    [
        ({"prompts": "a"}, ("prompts", ["a"])),
        ({"prompts": np.array(["a", "b"])}, ("prompts", ["a", "b"])),
        ({"prompts": (prompt for prompt in "ab")}, ("prompts", ["a", "b"])),
        ({"negative_prompt": ["x"]}, ("negative_prompt", "x")),
        ({"negative_prompt": ("x", "y")}, ("negative_prompt", ["x", "y"])),
        ({"seed": None}, ("seed", 0)),
        ({"seed": np.int64(7)}, ("seed", 7)),
        ({"seed": 2**64 - 1}, ("seed", 2**64 - 1)),
        ({"seed": [2**64 - 1, 1]}, ("seed", [2**64 - 1, 1])),
        ({"seed": np.array([3, 1])}, ("seed", [3, 1])),
        ({"num_steps": 2.0}, ("num_steps", 2)),
        ({"num_steps": jnp.float32(2)}, ("num_steps", 2)),
        ({"num_images": np.array(3)}, ("num_images", 3)),
        ({"batch_size": None}, ("batch_size", 4)),
        ({"height": 100.0, "width": np.float64(90)}, ("height", 100)),
        ({"guidance_scale": np.float16(2)}, ("guidance_scale", 2.0)),
        ({"noise": [[0.0, 1]]}, ("noise", np.float32([[0, 1]]))),
        ({"start": None}, ("start", Request("a").start)),
    ],
)
def test_what_is_meant_is_taken(given, expected):
    found = getattr(Request(**{"prompts": ["a", "b"]} | given), expected[0])
    assert type(found) is type(expected[1])
    assert np.array_equal(found, expected[1])


@pytest.mark.parametrize(
    "given,message",
    [
        ({"prompts": None}, "prompts must be a caption or a list of captions, not None"),
        ({"prompts": []}, "prompts must be a list of at least one caption"),
        ({"prompts": np.array([])}, "at least one caption"),
        ({"prompts": b"a"}, "prompts must be a caption"),
        ({"prompts": ["a", None]}, r"prompts\[1\] must be a caption, not None"),
        ({"prompts": ["a", b"b"]}, r"prompts\[1\] must be a caption"),
        ({"prompts": ["caf\udce9"]}, r"prompts\[0\] holds bytes that are no UTF-8"),
        ({"prompts": 3}, "prompts must be"),
        ({"negative_prompt": ["x", "y", "z"]}, "negative_prompt has 3 captions for 2 prompts"),
        ({"negative_prompt": []}, "negative_prompt must be a list of at least one"),
        ({"negative_prompt": 3}, "negative_prompt must be a caption"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ({"seed": "1"}, "seed = '1': must be a whole number"),
        ({"seed": [1, 2.5]}, r"seed\[1\] = 2.5: must be a whole number"),
        ({"seed": [1, 2**64]}, r"seed\[1\] = .* from 0 to"),
        ({"seed": [1, 2, 3]}, "seed has 3 numbers for 2 prompts"),
        ({"num_steps": 2.5}, "num_steps = 2.5: must be a whole number"),
        ({"num_steps": float("nan")}, "num_steps = nan: must be a whole number"),
        ({"num_steps": True}, "num_steps = True: must be a whole number"),
        ({"num_images": 0}, "num_images = 0: must be at least 1"),
        ({"size": "512"}, "size = '512'"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan: must be a finite number"),
        ({"guidance_scale": float("-inf")}, "guidance_scale = -inf: must be a finite number"),
        ({"guidance_scale": 1e39}, "guidance_scale = 1e\\+39: .* float32 can hold"),
        ({"guidance_scale": "4.5"}, "guidance_scale = '4.5': must be a number"),
        ({"sampler": ["ddim"]}, "sampler = .* must be a name"),
        ({"noise": np.full((1, 2), np.nan)}, "noise must be finite: 2 numbers are NaN"),
        ({"noise": np.full(3, 1e39)}, "noise must be finite"),
        ({"noise": np.zeros(2, complex)}, "noise must be an array of real numbers"),
        ({"noise": [[1], [2, 3]]}, "noise must be an array"),
        ({"start": 0.5}, "start must be a Start"),
    ],
)
def test_what_is_not_clear_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Request(**{"prompts": ["a", "b"]} | given)


def test_a_start_is_finite():
    for tokens in ([np.inf], np.float64([1e39]), jnp.array([jnp.nan])):
        with pytest.raises(InputError, match="start tokens must be finite"):
            Start(tokens=tokens)
    with pytest.raises(InputError, match="start = nan"):
        Start(start=float("nan"))


@pytest.mark.parametrize("given", ["3:2", " 3 : 2 ", "1.5", 1.5, (3, 2), [3.0, 2], np.float32(1.5), np.array([3, 2])])
def test_aspect_ratios(given):
    assert parse_aspect_ratio(given) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "given", ["", "16/9", "0:9", "9:0", "-1:2", "inf:1", "1:nan", "1:2:3", 0, -1.5, float("nan"), True, (1, 2, 3), {}]
)
def test_what_is_no_aspect_ratio(given):
    with pytest.raises(InputError, match="must be WIDTH:HEIGHT"):
        parse_aspect_ratio(given)


def test_help_opens_with_what_is_called(weights):
    assert len(inspect.signature(TextToImage).parameters) == 1
    text = pydoc.plain(pydoc.render_doc(TextToImage))
    assert text.index('TextToImage.from_checkpoint("weights/sigma-1024")') < text.index("Methods defined here")
    pipeline = TextToImage.from_checkpoint(weights)
    assert str(weights) in repr(pipeline) and "256 px" in repr(pipeline)
    assert "\n" not in repr(pipeline) and len(repr(pipeline)) < len(str(weights)) + 120
    for nothing in (str(weights), weights, None):
        with pytest.raises(InputError, match="from_checkpoint"):
            TextToImage(nothing)


@pytest.mark.parametrize(
    "setting,meant",
    [
        ("num_inference_steps", "num_steps"),
        ("num_images_per_prompt", "num_images"),
        ("guidance_scal", "guidance_scale"),
    ],
)
def test_unknown_settings_name_the_nearest(weights, setting, meant):
    with pytest.raises(InputError, match=rf"unknown setting {setting}; did you mean {meant}\?"):
        TextToImage.from_checkpoint(weights)("a", **{setting: 2})


def test_negative_prompts_of_each(weights):
    pipeline = TextToImage.from_checkpoint(weights)
    settings = {"num_steps": 2, "seed": 5}
    prompts, negatives = ["a red cat", "a blue dog"], ["fog", "small green circle"]
    together = pipeline(prompts, negative_prompt=negatives, **settings).astype(int)
    for i in range(2):
        alone = pipeline(prompts[i], negative_prompt=negatives[i], **settings)[0]
        assert np.abs(alone - together[i]).max() <= 1
    assert np.abs(pipeline(prompts, negative_prompt=negatives[0], **settings)[1] - together[1]).max() > 1
