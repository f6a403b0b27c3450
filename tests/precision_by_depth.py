"""What bfloat16 costs in exactness: python tests/precision_by_depth.py [DEPTH] [HIDDEN_SIZE]

Relative errors (L2) of eps and of the loss's gradient against float32, of a random model in which nothing is zero, with
the residual stream in bfloat16 and in float32. 256 tokens, two pictures.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from pixart_jax.models.params import init_params
from pixart_jax.models.pixart import PixArt

SIDE, TEXT_DIM, TEXT_TOKENS = 16, 64, 20


def random_params(model: PixArt) -> dict:
    """Fresh ones; what begins with zeros gets the deviation that the others of its kind have."""
    rng = np.random.default_rng(0)

    def filled(leaf):
        return leaf if leaf.any() else jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(filled, init_params(model, jax.random.key(0)))


def main(depth: int = 28, hidden_size: int = 288) -> None:
    model = PixArt(
        hidden_size=hidden_size,
        depth=depth,
        num_heads=hidden_size // 72,
        text_dim=TEXT_DIM,
        max_text_tokens=TEXT_TOKENS,
    )
    params, rng = random_params(model), np.random.default_rng(1)
    tokens, wanted = rng.standard_normal((2, 2, SIDE**2, 16), np.float32)
    positions = np.stack(np.meshgrid(*2 * [np.arange(SIDE, dtype=np.float32)], indexing="ij"), -1).reshape(1, -1, 2)
    conditions = {
        "positions": np.repeat(positions, 2, axis=0),
        "text": rng.standard_normal((2, TEXT_TOKENS, TEXT_DIM), np.float32),
        "text_length": np.int32([TEXT_TOKENS, 7]),
    }

    def results(model: PixArt) -> tuple[np.ndarray, np.ndarray]:
        def loss(params):
            eps = model.apply({"params": params}, tokens, np.float32([700, 100]), **conditions).eps
            return jnp.mean(jnp.square(eps - wanted)), eps

        (_, eps), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return np.ravel(eps), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    exact, half = results(model), model.clone(dtype=jnp.bfloat16)
    for name, other in (("bfloat16", half), ("float32", half.clone(residual_dtype=jnp.float32))):
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(results(other), exact, strict=True)]
        print(f"residual stream in {name}: eps {errors[0]:.2%}, gradient {errors[1]:.2%}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
