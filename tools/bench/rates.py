"""What the device can do and what there is on it, measured in the same run as what is held against it."""

from __future__ import annotations

import functools
import importlib.metadata
import os

import jax
import jax.numpy as jnp

from .turns import time_calls

# Long enough for clocks to settle.
SECONDS = 0.5
TRIES = 3
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers")


def matrix_size(platform: str) -> int:
    """Rows and columns of the matrices that are multiplied: as many as keep the device busy, and SECONDS are enough."""
    return 1024 if platform == "cpu" else 8192


@functools.cache
def matrix_rate(dtype: str, platform: str) -> float:
    """FLOP/s of one device in products of large square matrices of random numbers, as XLA computes them."""
    size = matrix_size(platform)
    x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    product = functools.partial(jax.jit(jnp.matmul), x, y)
    return calibrated_rate(2 * size**3, product, jax.block_until_ready)


def calibrated_rate(flops: float, call, wait) -> float:
    """FLOP/s of a call: the best of TRIES, each of about SECONDS of calls. What else the machine does only slows it."""
    wait(call())  # The first compiles.
    once = time_calls(call, 3, wait)
    return flops / min(time_calls(call, max(3, int(SECONDS / once)), wait) for _ in range(TRIES))


def peak_bytes(compiled: jax.stages.Compiled, device: jax.Device) -> dict[str, object]:
    """Memory that a program needs on a device: what the device says was most, otherwise what the compiler planned."""
    if measured := (device.memory_stats() or {}).get("peak_bytes_in_use"):
        return {"peak_bytes": measured, "peak_bytes_of": "device"}
    memory = compiled.memory_analysis()
    if memory is None:
        return {"peak_bytes": None}
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    planned += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"peak_bytes": planned, "peak_bytes_of": "compiler"}


def where() -> dict[str, object]:
    """The machine and the versions of what runs on it."""
    device = jax.devices()[0]
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
    }
