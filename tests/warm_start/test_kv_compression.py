"""Compression that is put into trained blocks: what keys and values are behind its norm."""

import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.models.layers import layer_norm
from pixart_jax.models.pixart import PixArt
from pixart_jax.warm_start.kv_compression import INSERTED, insert

WIDTH = 192
MODEL = PixArt(hidden_size=WIDTH)


def blocks(deviation, qk_norm):
    """Two blocks of which the second has keys and values ten times as large."""
    rng = np.random.default_rng(0)
    size = deviation * np.array([1.0, 10.0])[:, None, None]
    found = {
        "attn/qkv/kernel": (size * rng.normal(size=(2, WIDTH, 3 * WIDTH)) / WIDTH**0.5).astype(np.float32),
        "attn/qkv/bias": np.zeros((2, 3 * WIDTH), np.float32),
    }
    if qk_norm:
        found |= {"attn/k_norm/scale": np.full((2, WIDTH), 0.3), "attn/k_norm/bias": np.zeros((2, WIDTH))}
    return found


def compressed(params, block, x):
    """Keys or values [n, r², D] as `models.layers.SelfAttention` pools them."""
    pooled = jnp.einsum("nrc,rc->nc", x, params["attn/sr_kernel"][block]) + params["attn/sr_bias"][block]
    return layer_norm(pooled, eps=1e-5) * params["attn/norm/scale"][block] + params["attn/norm/bias"][block]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("deviation", [0.2, 1.0, 5.0])
def test_preserve_leaves_keys_and_values_as_their_means(deviation, qk_norm):
    """But for 2 dimensions of 192 and the error of the approximation; with the reference's start they are others."""
    old = blocks(deviation, qk_norm)
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(64, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    tokens /= tokens.std(axis=1, keepdims=True)
    for block in range(2):
        kernels = np.split(old["attn/qkv/kernel"][block], 3, axis=1)
        keys_and_values = [tokens @ kernel for kernel in kernels[1:]]
        if qk_norm:
            keys_and_values[0] = 0.3 * np.asarray(layer_norm(keys_and_values[0], eps=1e-5))
        for x in keys_and_values:
            error = {
                method: np.linalg.norm(compressed(insert(old, 2, MODEL, method), block, x[:, None].repeat(4, 1)) - x)
                / np.linalg.norm(x)
                for method in INSERTED
            }
            assert error["preserve"] < 0.13, error
            assert deviation * 10**block == 1 or error["reference"] > 0.4, error


def test_only_the_inserted_layers_differ():
    old = blocks(1.0, False)
    for method, made in INSERTED.items():
        new = insert(old, 3, MODEL, method)
        assert new.keys() == old.keys() | made.keys()
        assert new["attn/sr_kernel"].shape == (2, 9, WIDTH) and np.allclose(new["attn/sr_kernel"].sum(axis=1), 1)
        assert all(new[path].shape == (2, WIDTH) and new[path].dtype == np.float32 for path in [*made][1:])
        assert all(new[path] is array for path, array in old.items())
