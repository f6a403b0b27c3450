"""Batches of small feature shards."""

import contextlib

import numpy as np
from shard_cases import SPEC

from pixart_jax.data.pipeline import make_iterator


def batches(sources, count, spec=SPEC, *, state=None, seed=0, **options):
    """The first batches (from a saved state on)."""
    if not isinstance(sources, list):
        sources = [(sources, 1.0)]
    with contextlib.closing(make_iterator(sources, spec, seed=seed, **options)) as iterator:
        if state is not None:
            iterator.set_state(state)
        return [next(iterator) for _ in range(count)]


def ids(batch):
    """Numbers of the samples in a batch: see `make_sample`."""
    return [int(height) - 1 for height in batch["image_size"][:, 0]]


def assert_batches_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)
