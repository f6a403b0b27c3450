"""NaN and infinity are never drawn: what is drawn says which step and part had them first."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.errors import NotFinite
from pixart_jax.figures.images import to_uint8
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Start

PROMPTS = ["a red cat", "a blue dog"]


@pytest.fixture(scope="module")
def parts(weights):
    return TextToImage.from_checkpoint(weights, keep_loaded=True).parts


def refused(parts, message, prompts=PROMPTS, **settings):
    with pytest.raises(NotFinite, match=message):
        TextToImage(parts)(prompts, **{"num_steps": 4} | settings)


def with_number(parts, name, number):
    """The parts with one number of one array replaced."""

    def change(path, leaf):
        whole = "/".join(key.key for key in path)
        return leaf.at[(0,) * leaf.ndim].set(number) if whole == name else leaf

    changed = jax.tree_util.tree_map_with_path(change, parts.weights())
    return dataclasses.replace(parts, weights=lambda: changed)


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", ["x_embedder/kernel", "final_layer/linear/bias"])
def test_weights_are_named(parts, name, number):
    refused(with_number(parts, name, number), f"step 1 of 4: the model's prediction .*the weights hold it: {name};")


def test_the_null_caption_is_named_where_it_is_read(parts):
    name = "y_embedder/y_embedding"
    broken = with_number(dataclasses.replace(parts, has_null_text=True), name, jnp.nan)
    refused(broken, f"step 1 of 4: the model's prediction .*the weights hold it: {name}")
    # These weights have none, and NaN in its place.
    assert TextToImage(with_number(parts, name, jnp.nan))(PROMPTS, num_steps=2).std() > 0


@pytest.mark.parametrize("sampler", ["dpm-solver", "ddim", "iddpm"])
def test_the_first_step_is_named(parts, sampler):
    """Of the second picture alone, and not from its first step on."""

    def wrap(apply):
        def call(params, tokens, t, **conditions):
            eps, v = apply(params, tokens, t, **conditions)
            late = (t < 600) & (jnp.arange(len(t)) >= 2)
            return jnp.where(late[:, None, None], jnp.nan, eps), v

        return call

    broken = dataclasses.replace(parts, wrap=wrap)
    steps = {"dpm-solver": "3 of 4", "ddim": "2 of 4", "iddpm": "3 of 4"}
    refused(broken, f"step {steps[sampler]}: the model's prediction .*weights and text are finite", sampler=sampler)


def test_a_correction_is_named(parts):
    correct = jax.tree_util.Partial(lambda known, x, t, noise: jnp.where(t < 500, jnp.inf, x), np.zeros((2, 1)))
    refused(parts, "the picture after its correction", start=Start(correct=correct))


def test_numbers_that_grow_too_large(parts):
    refused(parts, r"step 1 of 4: .*lower the guidance scale \(1e\+38\)", guidance_scale=1e38)


def test_text_and_pictures(parts):
    def text(captions, progress):
        features, length = parts.encode_text(captions, progress)
        features[0, 0, 0] = np.nan
        return features, length

    refused(dataclasses.replace(parts, encode_text=text), "what the model is given holds it: text;")
    decoded = (np.full((8, 8, 3), number) for number in (np.nan, np.inf))
    refused(
        dataclasses.replace(parts, decode_latents=lambda latents: decoded, draw_latents=None),
        "a decoded picture holds NaN",
    )
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(NotFinite):
            to_uint8(np.full((2, 2, 3), number))


@pytest.mark.parametrize(
    "kind,name,message",
    [
        ("vae", "decoder/conv_in/kernel", "decoding: a picture of the autoencoder .*its weights hold it: {}"),
        (
            "text_encoder",
            "block/DenseReluDense/wo/kernel",
            "reading the captions: .*its weights hold it: {}",
        ),
    ],
)
def test_encoders_are_named(weights, tmp_path, kind, name, message):
    from pixart_jax.conversion.encoders import open_encoder
    from pixart_jax.conversion.stored_arrays import write_params

    shutil.copytree(weights / kind, tmp_path / kind)
    arrays = open_encoder(weights / kind, kind).arrays.read_all()
    assert name in arrays, sorted(arrays)
    arrays[name] = np.full_like(arrays[name], np.nan)
    shutil.rmtree(tmp_path / kind / "params")
    write_params(tmp_path / kind / "params", arrays)
    pipeline = TextToImage.from_checkpoint(weights, **{kind: tmp_path / kind})
    with pytest.raises(NotFinite, match=message.format(name)):
        pipeline(PROMPTS, num_steps=2)
