"""Checksums of arrays, equal on devices, however sharded, and in numpy: what was saved is known to have come back.

Neither zarr nor OCDBT, the formats that Orbax writes, notices a changed byte of an array.

An element's bits plus its place in the array (times an odd number) go through MurmurHash3's finalizer, a bijection of
32 bits, and are summed modulo 2^32, which no order of summing changes. One changed element is always noticed; other
damage is missed once in 2^32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.devices.offload import to_device

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
# Elements that numpy works on at a time: what fits into a core's cache.
_CHUNK = 1 << 16
# Elements of an array that the host takes the checksum of.
_SMALL = 1 << 22
# What an element's place is multiplied by, and MurmurHash3's shifts and factors.
_PLACE = 0x9E3779B1
_ROUNDS = ((np.uint32(16), np.uint32(0x85EBCA6B)), (np.uint32(13), np.uint32(0xC2B2AE35)))
_PLACES = np.arange(_CHUNK, dtype=np.uint32) * np.uint32(_PLACE)


def tree_checksums(tree: Any) -> jax.Array:
    """u32[number of leaves] for a tree of arrays of at most 32 bits an element, in the order of `jax.tree.leaves`."""
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(to_device(tree))])


def device_checksum(array: jax.Array) -> int:
    """That of one array on devices."""
    if _suits_host(array):
        return array_checksum(np.asarray(array))
    return int(jax.jit(tree_checksums)([array])[0])


def device_checksums(arrays: Sequence[jax.Array]) -> list[int]:
    """Those of several: what the host takes on all its cores; the rest in their order, which is all processes'."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy leaves the interpreter to the others meanwhile.
        begun = [pool.submit(device_checksum, array) if _suits_host(array) else None for array in arrays]
        return [
            device_checksum(array) if found is None else found.result()
            for array, found in zip(arrays, begun, strict=True)
        ]


def _suits_host(array: jax.Array) -> bool:
    on_host = next(iter(array.devices())).platform == "cpu"
    # Compiling for each of an autoencoder's many shapes takes longer than fetching them.
    return array.is_fully_addressable and (on_host or array.size < _SMALL)


def array_checksum(array: np.ndarray) -> int:
    """That of one array, by numpy."""
    bits = np.ascontiguousarray(array).reshape(-1).view(_BITS[array.dtype.itemsize])
    mixed, shifted = np.empty(_CHUNK, np.uint32), np.empty(_CHUNK, np.uint32)
    total = 0
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        out, other = mixed[: chunk.size], shifted[: chunk.size]
        np.add(_PLACES[: chunk.size], np.uint32(start * _PLACE % 2**32), out=out)
        out += chunk
        # `_mix` in place: nothing is allocated, and a chunk stays in the core's cache.
        for shift, factor in _ROUNDS:
            out ^= np.right_shift(out, shift, out=other)
            out *= factor
        out ^= np.right_shift(out, np.uint32(16), out=other)
        total += int(out.sum(dtype=np.uint32))
    return total % 2**32


@jax.jit  # Traced once for all leaves of a shape.
def _checksum(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    # Places from the axes and not by flattening, which would gather a sharded array.
    places, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):
        places += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    return jnp.sum(_mix(bits, places), dtype=jnp.uint32)


def _mix(bits: jax.Array, places: jax.Array) -> jax.Array:
    """Of u32 arrays."""
    mixed = bits + places * np.uint32(_PLACE)
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 16)
