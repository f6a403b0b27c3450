"""Independent streams of random numbers from one seed, so that no key is used twice."""

from __future__ import annotations

import jax

_STREAMS = ("init", "train", "sample", "eval", "adapter")


def stream_key(seed: int | jax.Array, stream: str) -> jax.Array:
    """The root key of a stream: "init" (parameters), "train" (folded with the step), "sample" or "eval" (with the
    picture's index), "adapter" (what an adapter adds)."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
