"""Key/value compression that leaves no weights, against PyTorch's own operations as the reference calls them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pixart_jax.models.attention import PLAIN
from pixart_jax.models.layers import SelfAttention
from pixart_jax.tokens import block_order

HEADS, WIDTH = 2, 8


def _downsample(tokens, height, width, ratio, sampling):
    """The reference's `downsample_2d` (pixart_spec §1.8): f32[B, H·W, C] in row-major order."""
    batch, _, channels = tokens.shape
    if sampling == "uniform_every":
        return tokens[:, ::ratio]
    grid = tokens.reshape(batch, height, width, channels)
    if sampling == "uniform":
        return grid[:, ::ratio, ::ratio].reshape(batch, -1, channels)
    grid = torch.nn.functional.interpolate(grid.permute(0, 3, 1, 2), scale_factor=1 / ratio, mode="nearest")
    return grid.permute(0, 2, 3, 1).reshape(batch, -1, channels)


def _reference(params, x, height, width, ratio, sampling):
    x = torch.from_numpy(x)
    kernel, bias = (torch.from_numpy(np.array(params["qkv"][name])) for name in ("kernel", "bias"))
    q, k, v = (x @ kernel + bias).chunk(3, dim=-1)
    k, v = (_downsample(y, height, width, ratio, sampling) for y in (k, v))
    q, k, v = (y.reshape(*y.shape[:2], HEADS, -1).transpose(1, 2) for y in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return (out @ torch.from_numpy(np.array(params["proj"]["kernel"]))).numpy() + np.array(params["proj"]["bias"])


@pytest.mark.parametrize("sampling", ["ave", "uniform", "uniform_every"])
@pytest.mark.parametrize(("height", "width", "ratio"), [(4, 4, 2), (4, 8, 2), (6, 2, 2), (6, 9, 3), (8, 4, 4)])
def test_samplings_are_the_references(sampling, height, width, ratio):
    """In our order of tokens, with padding behind them that must not be seen."""
    random = np.random.default_rng(0)
    count, padding = height * width, 2 * ratio**2
    x = random.normal(size=(2, count, WIDTH)).astype(np.float32)
    order = block_order((height, width), ratio)
    ours = np.concatenate([x[:, order], random.normal(size=(2, padding, WIDTH)).astype(np.float32)], axis=1)
    layer = SelfAttention(HEADS, ratio, sampling, False, PLAIN, jnp.float32)
    params = layer.init(jax.random.key(0), ours, None)["params"]
    assert set(params) == {"qkv", "proj"}
    found = layer.apply({"params": params}, ours, jnp.full(2, count))[:, :count][:, np.argsort(order)]
    np.testing.assert_allclose(found, _reference(params, x, height, width, ratio, sampling), atol=1e-6)


def test_samplings_differ():
    x = np.random.default_rng(0).normal(size=(1, 16, WIDTH)).astype(np.float32)
    results = {}
    for sampling in ("uniform", "uniform_every", "none"):
        layer = SelfAttention(HEADS, 1 if sampling == "none" else 2, sampling, False, PLAIN, jnp.float32)
        params = layer.init(jax.random.key(0), x, None)["params"]
        results[sampling] = np.asarray(layer.apply({"params": params}, x, None))
    assert np.abs(results["uniform"] - results["uniform_every"]).max() > 1e-2
    assert np.abs(results["uniform_every"] - results["none"]).max() > 1e-2
