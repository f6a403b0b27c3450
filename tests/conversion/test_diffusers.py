"""Our model equals diffusers' PixArtTransformer2DModel with weights read from a folder that diffusers has saved.

At full depth the same comparison takes minutes and is no test; from the repository's root:

    PYTHONPATH=tests python -c 'from conversion.test_diffusers import *; compare_at_full_depth()'

It gave 1.3e-5 at 256 px and, with `compare_at_full_depth((128, 128), interpolation_scale=2,
use_additional_conditions=True)`, 2.3e-5 at 1024 px (13 GB of memory, 5 minutes on two cores).
"""

import dataclasses
import json

import flax
import jax
import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.numpy import load_file, save_file

from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import load_weights
from pixart_jax.errors import InputError
from pixart_jax.tokens import grid_positions, patchify, unpatchify

TOLERANCE = 1e-4
ALPHA = {
    "num_attention_heads": 3,
    "attention_head_dim": 12,
    "num_layers": 3,
    "cross_attention_dim": 36,
    "caption_channels": 20,
    "sample_size": 16,
    "use_additional_conditions": True,
    "interpolation_scale": 2,
}
SIGMA = ALPHA | {
    "num_attention_heads": 5,
    "cross_attention_dim": 60,
    "use_additional_conditions": False,
    "interpolation_scale": 0.5,
}
XL = {"num_layers": 2, "caption_channels": 4096, "sample_size": 32, "interpolation_scale": 0.5}


def make_transformer(**config) -> PixArtTransformer2DModel:
    """Random weights, also where a fresh model has zeros, of a size that keeps activations near 1."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(**config).eval()
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            parameter.normal_(0, 0.3 if name.endswith(("bias", "table")) else parameter[0].numel() ** -0.5)
    return transformer


def compare(transformer, folder, latent_shape, lengths, family="sigma", timesteps=(986, 7)):
    """Largest difference between diffusers' output and ours, which reads `folder`, over a batch of masked captions."""
    config = transformer.config
    transformer.save_pretrained(folder)
    weights = load_weights(open_source(folder), Hints(family=family))
    stored, flat = weights.stored, {path: weights.read(path) for path in weights.paths}
    assert np.isnan(flat[NULL_TEXT]).all() and stored.null_text == "missing"
    params = flax.traverse_util.unflatten_dict(flat, sep="/")

    rng = np.random.default_rng(1)
    x = rng.standard_normal((len(lengths), config.in_channels, *latent_shape), np.float32)
    text = rng.standard_normal((len(lengths), max(lengths) + 2, config.caption_channels), np.float32)
    t = np.resize(timesteps, len(lengths))
    image_size = np.resize(np.float32([[704, 1472], [1024, 768]]), (len(lengths), 2))
    aspect_ratio = np.resize(np.float32([[0.48], [1.33]]), (len(lengths), 1))
    micro = {"resolution": torch.tensor(image_size), "aspect_ratio": torch.tensor(aspect_ratio)}
    with torch.no_grad():
        expected = transformer(
            torch.tensor(x),
            encoder_hidden_states=torch.tensor(text),
            timestep=torch.tensor(t),
            added_cond_kwargs=micro if config.use_additional_conditions else {"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=torch.arange(text.shape[1])[None] < torch.tensor(lengths)[:, None],
        ).sample.numpy()

    model, patch = stored.model, stored.model.patch_size
    grid = tuple(side // patch for side in latent_shape)
    positions = grid_positions(grid, stored.position_base, stored.position_scale)
    output = jax.jit(model.apply)(
        {"params": params},
        patchify(x.transpose(0, 2, 3, 1), patch),
        t,
        positions=np.tile(positions, (len(lengths), 1, 1)),
        num_tokens=np.full(len(lengths), len(positions)),
        text=text,
        text_length=np.array(lengths),
        image_size=image_size,
        aspect_ratio=aspect_ratio,
    )
    ours = [unpatchify(np.asarray(part), grid, patch).transpose(0, 3, 1, 2) for part in output if part is not None]
    assert 0.3 < expected.std() < 10
    return np.abs(np.concatenate(ours, axis=1) - expected).max()


def test_released_alphas_hold_their_null_caption(tmp_path):
    """As the class of the time wrote them, which had the caption as a buffer, another name and fewer settings."""
    make_transformer(**ALPHA | {"sample_size": 128}).save_pretrained(tmp_path)
    weights, settings = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    without = open_source(tmp_path)
    null_text = np.random.default_rng(0).standard_normal((120, ALPHA["caption_channels"]), np.float32)
    save_file(load_file(weights) | {"caption_projection.y_embedding": null_text}, weights)
    config = json.loads(settings.read_text()) | {"_class_name": "Transformer2DModel", "num_embeds_ada_norm": 1000}
    del config["use_additional_conditions"], config["interpolation_scale"]
    settings.write_text(json.dumps(config))

    found, expected = load_weights(open_source(tmp_path)), load_weights(without)
    assert found.stored == dataclasses.replace(expected.stored, null_text="stored")
    assert (found.stored.model.max_text_tokens, found.stored.latent_scale) == (120, 0.18215)
    for path in expected.paths:
        wanted = null_text if path == NULL_TEXT else expected.read(path)
        np.testing.assert_array_equal(found.read(path), wanted, err_msg=path)


@pytest.mark.parametrize(
    "config,latent_shape,family",
    [
        (ALPHA, (16, 16), "alpha"),
        (ALPHA, (10, 22), "alpha"),
        (SIGMA, (22, 6), "sigma"),
        (SIGMA | {"patch_size": 4, "in_channels": 3, "out_channels": 3}, (12, 20), "sigma"),
    ],
    ids=["alpha", "alpha wide", "sigma tall", "patches of 4, fixed variance"],
)
def test_equals_diffusers(config, latent_shape, family, tmp_path):
    assert compare(make_transformer(**config), tmp_path, latent_shape, (3, 9, 1), family) < TOLERANCE


@pytest.mark.parametrize(
    "latent_shape,sample_size", [((32, 32), 32), ((44, 88), 64)], ids=["256 px", "512 px, wide bucket"]
)
def test_equals_diffusers_at_full_width(latent_shape, sample_size, tmp_path):
    config = XL | {"sample_size": sample_size, "interpolation_scale": 1}
    assert compare(make_transformer(**config), tmp_path, latent_shape, (17,)) < TOLERANCE


def compare_at_full_depth(latent_shape=(32, 32), **config):
    """Prints the largest difference of the released size, 28 layers."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = XL | {"num_layers": 28, "sample_size": max(latent_shape)} | config
        print(compare(make_transformer(**config), folder, latent_shape, (23,)))


@pytest.mark.parametrize(
    "hints,message",
    [
        ({"num_heads": 5}, "a hidden size of 36 cannot be split between 5 heads; correct --num-heads"),
        ({"num_heads": 37}, "cannot be split between 37 heads"),
        ({"num_heads": 0}, "--num-heads 0 must be at least 1"),
        ({"num_heads": -3}, "--num-heads -3 must be at least 1"),
    ],
)
def test_options_that_no_model_has(hints, message, tmp_path):
    make_transformer(**ALPHA | {"num_layers": 1}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        load_weights(open_source(tmp_path), Hints(**hints))
