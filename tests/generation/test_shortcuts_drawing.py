"""Pictures sooner: what must not change them does not, what may stays near, and what cannot be is refused."""

import jax
import numpy as np
import pytest

from pixart_jax.adapters.lora import Lora
from pixart_jax.encoding.pretrained import rounded
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from pixart_jax.generation.adaptation import DORA_IS_WHOLE, Adaptation
from pixart_jax.generation.pipeline import TextToImage

PROMPTS = ["a red cat", "a blue dog"]
SETTINGS = {"seed": 3, "num_steps": 6, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipeline(weights):
    return TextToImage.from_checkpoint(weights, keep_loaded=True)


@pytest.fixture(scope="module")
def plain(weights):
    """As it is drawn without any shortcut."""
    return TextToImage.from_checkpoint(weights, text_once=False)(PROMPTS, **SETTINGS).astype(int)


def test_the_text_once_changes_no_picture(pipeline, plain):
    drawn = pipeline(PROMPTS, **SETTINGS)
    assert np.abs(drawn - plain).max() <= 1 and drawn.std() > 5


def test_pictures_are_rounded_on_the_device_as_on_the_host(pipeline):
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[:513] = np.arange(513, dtype=np.float32) / 255 - 1.0  # whole levels and halves between them
    np.testing.assert_array_equal(rounded(values), to_uint8(values))
    latents = np.random.default_rng(1).normal(size=(1, 32, 32, 4)).astype(np.float32)
    parts = pipeline.parts
    drawn, decoded = next(parts.pictures_of(latents)), next(parts.decode_latents(latents))
    assert drawn.dtype == np.uint8 and np.abs(drawn - to_uint8(decoded).astype(int)).max() <= 1


def test_one_program_draws_all_intervals(pipeline, plain, compilations):
    drawn = [pipeline(PROMPTS, **SETTINGS, guidance_interval=pair) for pair in ((0, 1000), (200, 700), (999, 1000))]
    assert compilations.count("jit(sample_step)") == 1
    assert np.abs(drawn[0] - plain).max() <= 1
    assert all(np.abs(picture - plain).mean() > 0.2 for picture in drawn[1:])


def test_eight_bits_and_reuse_stay_near(weights, pipeline, plain):
    small = TextToImage.from_checkpoint(weights, int8="weights", int8_text_encoder=True)
    other = pipeline(PROMPTS[::-1], **SETTINGS)
    for drawn in (small(PROMPTS, **SETTINGS), pipeline(PROMPTS, **SETTINGS, reuse="1.5")):
        assert 0 < np.abs(drawn - plain).mean() < 0.5 * np.abs(other - plain).mean()


def test_what_stays_loaded_stays_in_int8_alone(weights):
    before = {id(array) for array in jax.live_arrays()}
    small = TextToImage.from_checkpoint(weights, int8="weights", keep_loaded=True)
    kept, again = (small.parts.weights()["blocks_0"]["mlp"]["fc1"]["kernel"] for _ in range(2))
    assert kept is again and kept.dtype == np.int8
    new = [array for array in jax.live_arrays() if array.shape == kept.shape and id(array) not in before]
    assert all(array.dtype == np.int8 for array in new)
    laid = small.adapted([Adaptation(Lora, lambda: {})])
    assert laid.parts.weights().frozen["blocks_0"]["mlp"]["fc1"]["kernel"] is kept
    with pytest.raises(InputError, match="int8: a DoRA adapter scales the rows"):
        small.adapted([Adaptation(Lora, lambda: {}, whole=DORA_IS_WHOLE)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_interval": (300, 1200)}, r"guidance_interval = 300 to 1200: must lie in \[0, 1000\]"),
        ({"guidance_interval": (800, 300)}, "800 to 300: must lie in .*, the lower timestep first"),
        ({"guidance_interval": 300}, "guidance_interval = 300: must be two timesteps"),
        (
            {"guidance_interval": (0, 500), "guidance": "none"},
            "guidance_interval: .* without .*; leave it out$",
        ),
        ({"negative_prompt": "fog", "guidance": "none"}, "negative_prompt: .* without .*guidance; leave it out$"),
        ({"negative_prompt": "fog", "sampler": "lcm"}, "negative_prompt: .*, or name a guidance_scale"),
        ({"guidance_scale": 3.0, "guidance": "none"}, 'guidance_scale: guidance = "none" draws without'),
        ({"reuse": "3"}, "reuse = '3': must be one of 1.3, 1.5, 2"),
        ({"reuse": "1.5", "sampler": "dmd"}, "reuse = '1.5': takes 5 steps or more .*, not 1 of dmd"),
        ({"reuse": "2", "num_steps": 2}, "reuse = '2': takes 3 steps or more"),
        ({"reuse": "2", "guidance_interval": (0, 500)}, "reuse and guidance_interval do not go together"),
    ],
)
def test_what_cannot_be_is_refused(pipeline, settings, message):
    with pytest.raises(InputError, match=message):
        pipeline(PROMPTS, **settings)


def test_shortcuts_that_would_be_wrong_are_refused(weights, pipeline):
    with pytest.raises(InputError, match="int8 = 'float8': must be one of auto, weights, products"):
        TextToImage.from_checkpoint(weights, int8="float8")
    watched = TextToImage.from_checkpoint(weights, wrap=lambda apply: apply)
    with pytest.raises(InputError, match="reuse runs the model in pieces, and wrap would not be called"):
        watched(PROMPTS, reuse="2", num_steps=8)
