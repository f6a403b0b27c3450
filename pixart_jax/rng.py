"""Independent streams of random numbers from one seed, so that no key is used twice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.errors import InputError

_STREAMS = ("init", "train", "sample", "eval", "adapter", "picture")
# As other programs write them: 32 bits of most, 64 of PyTorch.
MAX_SEED = 2**64 - 1


def check_seed(seed: int, name: str) -> int:
    """The seed, where it is one; raises InputError that names it where it is none of 0 to 2^64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"{name} = {seed!r}: must be a whole number from 0 to {MAX_SEED} (2^64 - 1)")
    return int(seed)


def seed_words(seed: int | np.integer) -> np.ndarray:
    """u32[2]: a seed of 64 bits, for `stream_key` in a compiled program that serves all seeds."""
    return np.array(divmod(int(seed), 2**32), np.uint32)


def stream_key(seed: int | np.ndarray | jax.Array, stream: str) -> jax.Array:
    """The root key of a stream: "init" (parameters), "train" (folded with the step), "sample" or "eval" (with the
    picture's index), "adapter" (what an adapter adds), "picture" (latents of one that is drawn from).

    Args:
      seed: 0 to `MAX_SEED`, or its `seed_words`.
    """
    # `jax.random.key` would cut off what is above 32 bits; below, its keys are the words too.
    words = jnp.asarray(seed_words(seed) if isinstance(seed, int | np.integer) else seed)
    size = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).size
    return jax.random.fold_in(jax.random.wrap_key_data(jnp.tile(words, size // 2)), _STREAMS.index(stream))
