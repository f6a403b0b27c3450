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
    frozen = {"lpips": rows, "decoder": 0.1}

    def apart(drawn):
        tokens = [latents_to_tokens(0.5 * wanted, 2, 12, block_ratio)]
        return distance(drawn, *tokens, {}, frozen)

    tokens = latents_to_tokens(0.5 * drawn, 2, 12, block_ratio)
    expected = (rows * (0.1 * drawn - 0.1 * wanted) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(apart(tokens), expected, rtol=1e-5)
    gradient = jax.grad(lambda drawn: apart(drawn).sum())(tokens)
    assert gradient[:, :8].all() and not gradient[:, 8:].any()


def test_what_no_picture_shows_is_no_distance():
    """Decoded pictures are clamped to [-1, 1]."""
    network = types.SimpleNamespace(apply=lambda _, one, other: jnp.square(one - other).mean((1, 2, 3)))
    distance = PictureDistance(lambda _, latents: latents, network, (2, 2), 2, 1.0)
    frozen = {"lpips": None, "decoder": None}
    white, whiter, black = (latents_to_tokens(np.full((1, 4, 4, 3), value, np.float32), 2, 4) for value in (2, 5, -9))
    assert distance(white, whiter, {}, frozen) == 0
    assert distance(white, black, {}, frozen) == 4
