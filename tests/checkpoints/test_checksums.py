"""Checksums: the same by numpy and on devices, sharded or not, and no damage goes by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixart_jax.checkpoints.checksums import (
    array_checksum,
    device_checksum,
    device_checksums,
    tree_checksums,
)

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.normal(size=(300, 301)).astype(np.float32),  # More than one of numpy's chunks.
    "kernel": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "half": jnp.asarray(RNG.normal(size=(7, 9)), jnp.bfloat16),
    "count": np.asarray(1234, np.int32),
    "odd": np.asarray([0.0, -0.0, np.nan, np.inf, 1e-40], np.float32),
}


def test_numpy_and_the_device_agree():
    found = jax.jit(tree_checksums)(ARRAYS).tolist()
    assert found == [array_checksum(np.asarray(ARRAYS[name])) for name in sorted(ARRAYS)]
    assert len(set(found)) == len(ARRAYS)
    large = np.ones(1 << 22, np.float32)
    assert device_checksum(jnp.asarray(large)) == array_checksum(large)
    for name, array in ARRAYS.items():
        assert device_checksum(jnp.asarray(array)) == array_checksum(np.asarray(ARRAYS[name]))
    assert sorted(device_checksums([*map(jnp.asarray, ARRAYS.values())])) == sorted(found)


def test_every_bit_counts():
    array = ARRAYS["kernel"]
    whole = array_checksum(array)
    for place in range(array.size):
        for bit in range(32):
            changed = array.view(np.uint32).copy()
            changed.flat[place] ^= np.uint32(1 << bit)
            assert array_checksum(changed.view(np.float32)) != whole, (place, bit)


@pytest.mark.parametrize("damage", ["zeroed", "moved", "two signs", "every sign"])
def test_larger_damage(damage):
    array = ARRAYS["matrix"].copy()
    if damage == "zeroed":
        array.flat[1024:2048] = 0
    elif damage == "moved":
        array.flat[:2048] = np.roll(array.flat[:2048], 1024)
    elif damage == "two signs":
        array.flat[[7, 7000]] *= -1
    else:
        array *= -1
    assert array_checksum(array) != array_checksum(ARRAYS["matrix"])
