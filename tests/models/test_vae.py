"""The autoencoder against diffusers', with random weights; tiles against diffusers' and against the whole picture."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models.vae_cases import (
    SD,
    SDXL,
    SMALL,
    config,
    expected_shapes,
    load,
    make_reference,
    random_images,
    random_latents,
    reference_decode,
    reference_encode,
)

from pixart_jax.devices.sharding import PARTITION_RULES, make_mesh, tree_shardings
from pixart_jax.errors import InputError
from pixart_jax.models import vae
from pixart_jax.models.vae import AutoencoderKL


def assert_agrees(fields, reference, image_shape, tolerance):
    """Both halves; the reference's outputs must vary over the picture, or they would prove little."""
    model, encode, decode = load(fields, reference)
    images = random_images(*image_shape)
    grid = (side // model.downsample for side in image_shape[1:3])
    latents = random_latents(image_shape[0], *grid, model.latent_channels)
    for ours, theirs in (
        *zip(encode(images), reference_encode(reference, images), strict=True),
        (decode(latents), reference_decode(reference, latents)),
    ):
        assert ours.dtype == jnp.float32
        assert theirs.std(axis=(1, 2)).min() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("fields,shape", [(SD, (1, 96, 64, 3)), (SDXL, (1, 64, 96, 3))], ids=["sd", "sdxl"])
def test_released_sizes_equal_diffusers(fields, shape):
    assert_agrees(fields, make_reference(fields), shape, 1e-4)


@pytest.mark.parametrize(
    "fields,shape",
    [
        (SMALL, (2, 10, 6, 3)),
        (SMALL | {"in_channels": 1, "out_channels": 2, "latent_channels": 16}, (1, 6, 10, 1)),
        (
            config([12], 3, norm_num_groups=3, latent_channels=3)
            | dict.fromkeys(["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"], False),
            (1, 5, 7, 3),
        ),
        (config([8, 24, 16], 1, norm_num_groups=2), (1, 16, 12, 3)),
    ],
    ids=["small", "channels", "one level, no options", "three levels"],
)
def test_other_sizes_equal_diffusers(fields, shape):
    assert_agrees(fields, make_reference(fields), shape, 5e-5)


def test_nearly_flat_activations_equal_diffusers():
    """With variances near 1e-6 the norms' epsilon shows."""
    reference = make_reference(SMALL)
    with torch.no_grad():
        for half in (reference.encoder, reference.decoder):
            half.conv_in.weight *= 1e-3
            half.conv_in.bias *= 1e-3
    assert_agrees(SMALL, reference, (1, 16, 16, 3), 5e-5)


def test_std_is_clamped():
    """Log variances beyond [-30, 20] stop there."""
    reference = make_reference(SMALL)
    with torch.no_grad():
        reference.quant_conv.bias[4:6] = torch.tensor([-200.0, 200.0])
    _, encode, _ = load(SMALL, reference)
    std = np.asarray(encode(random_images(1, 8, 8, 3))[1])
    np.testing.assert_allclose(std[..., 0], np.exp(-15), rtol=1e-6)
    np.testing.assert_allclose(std[..., 1], np.exp(10), rtol=1e-6)


@pytest.mark.parametrize("dtype,spread,tolerance", [(jnp.float32, 1.0, 1e-3), (jnp.bfloat16, 16.0, 0.02)])
def test_norm_statistics_survive_a_large_mean(dtype, spread, tolerance):
    """Mean of squares minus square of the mean would be off by percents, bfloat16 statistics by a tenth."""
    x = jnp.asarray(1000 + spread * random_latents(2, 16, 16, 8), dtype)
    layer = vae.group_norm(2, dtype, name=None)
    ours = layer.apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
    groups = np.asarray(x, np.float64).reshape(2, 16, 16, 2, 4)
    centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
    exact = centred / np.sqrt(np.square(centred).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact.reshape(x.shape), atol=tolerance)


def test_bfloat16_runs_close_to_float32():
    reference = make_reference(SMALL)
    images, latents = random_images(1, 32, 48, 3), random_latents(1, 16, 24, 4)
    _, encode, decode = load(SMALL, reference)
    _, encode_16, decode_16 = load(SMALL, reference, jnp.bfloat16)
    for exact, rough in (*zip(encode(images), encode_16(images), strict=True), (decode(latents), decode_16(latents))):
        error = np.abs(exact - rough).mean() / np.abs(exact).mean()
        assert rough.dtype == jnp.float32
        assert error < 0.03, error


@pytest.mark.parametrize("method,shape", [("encode", (1, 32, 48, 3)), ("decode", (1, 16, 24, 4))])
def test_bfloat16_products_are_bfloat16(method, shape):
    """All convolutions but the last of each half and the 1×1 beyond it; all projections."""
    model = AutoencoderKL.from_config(SMALL, jnp.bfloat16)
    image, inputs = np.zeros((1, 2, 2, 3), np.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    program = jax.jit(functools.partial(model.apply, method=method)).lower(variables, inputs).as_text().splitlines()
    convolutions = [line for line in program if "stablehlo.convolution" in line]
    assert len(convolutions) > 10 and sum("xf32>" in line for line in convolutions) == 2
    products = [line for line in program if "stablehlo.dot_general" in line]
    assert len(products) >= 6 and not any("xf32>," in line for line in products)


@pytest.mark.parametrize("size", [(1024, 1024), (512, 2048), (2880, 576), (64, 8)])
def test_shapes_of_aspect_ratios(size):
    model = AutoencoderKL.from_config(SDXL)
    grid = (size[0] // 8, size[1] // 8)

    def shapes(shape, method):
        variables = {"params": flax.traverse_util.unflatten_dict(params, sep="/")}
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.tree.map(jnp.shape, jax.eval_shape(functools.partial(model.apply, method=method), variables, inputs))

    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in expected_shapes(model).items()}
    assert shapes((2, *size, 3), "encode") == ((2, *grid, 4), (2, *grid, 4))
    assert shapes((2, *grid, 4), "decode") == (2, *size, 3)


@pytest.mark.parametrize(
    "method,shape",
    [
        ("encode", (1, 8, 9, 3)),
        ("encode", (1, 9, 8, 3)),
        ("encode", (1, 8, 8, 4)),
        ("encode", (8, 8, 3)),
        ("decode", (1, 8, 8, 3)),
        ("decode", (8, 8, 4)),
    ],
)
def test_wrong_shapes_are_refused(method, shape):
    with pytest.raises(InputError, match="the autoencoder takes"):
        AutoencoderKL.from_config(SMALL).apply({"params": {}}, np.zeros(shape, np.float32), method=method)


@pytest.mark.parametrize("max_logits", [10**6, 2 * 35 * 35, 2000, 100])
def test_attention_in_parts_is_attention(monkeypatch, max_logits):
    """35 queries in 1, 1, 2 and 25 parts: the last two need padding."""
    q, k, v = random_latents(3, 2, 35, 12)
    monkeypatch.setattr(vae, "MAX_LOGITS", max_logits)
    logits = np.einsum("bnc,bmc->bnm", q, k) / np.sqrt(12)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(vae.attend_in_parts(q, k, v), weights @ v, atol=1e-6)


def test_attention_in_parts_bounds_memory(monkeypatch):
    monkeypatch.setattr(vae, "MAX_LOGITS", 2**18)
    x = jax.ShapeDtypeStruct((1, 4096, 8), jnp.float32)
    memory = jax.jit(vae.attend_in_parts).lower(x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**18 * 4 * 8  # all the logits are 2**24


def test_partition_rules_cover_every_parameter():
    model = AutoencoderKL.from_config(SD)
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in expected_shapes(model).items()}
    shardings = tree_shardings(flax.traverse_util.unflatten_dict(tree, sep="/"), make_mesh(devices=jax.devices()[:1]))
    specs = {path: s.spec for path, s in flax.traverse_util.flatten_dict(shardings, sep="/").items()}
    assert {path for path, spec in specs.items() if "fsdp" in spec} == {p for p in specs if p.endswith("/kernel")}
    assert len(PARTITION_RULES) > 0 and len(specs) == 248


# Conversion.
