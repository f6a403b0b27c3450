"""The distance of pictures finds the latents among tokens, and what it needs in the frozen half."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.objectives.picture_distance import PictureDistance
from pixart_jax.tokens import latents_to_tokens


@pytest.mark.parametrize("block_ratio", [1, 2])
def test_tokens_are_decoded_and_compared(block_ratio):
    rng = np.random.default_rng(0)
    drawn, wanted = rng.standard_normal((2, 3, 4, 8, 5), np.float32)
    # Row-dependent weights, so that latents in another order are others.
    rows = np.arange(1, 9, dtype=np.float32)[:, None]
    network = types.SimpleNamespace(
        apply=lambda variables, one, other: (variables["params"] * jnp.square(one - other)).mean((1, 2, 3))
    )
    distance = PictureDistance(lambda scale, latents: scale * latents, network, (2, 4), 2, 0.5, block_ratio)
    frozen = {"lpips": rows, "decoder": 3.0}

    def apart(drawn):
        tokens = [latents_to_tokens(0.5 * wanted, 2, 12, block_ratio)]
        return distance(drawn, *tokens, {}, frozen)

    tokens = latents_to_tokens(0.5 * drawn, 2, 12, block_ratio)
    expected = (rows * (3 * drawn - 3 * wanted) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(apart(tokens), expected, rtol=1e-5)
    gradient = jax.grad(lambda drawn: apart(drawn).sum())(tokens)
    assert gradient[:, :8].all() and not gradient[:, 8:].any()
