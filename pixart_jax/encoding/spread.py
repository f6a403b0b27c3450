"""Pictures over devices: one on each, or where there are fewer pictures than devices, a strip of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Spread:
    """Batches [B, H, W, C] over devices.

    Args:
      devices: None is all of this process.

    Attributes:
      mesh: the devices along an axis for each prime factor of their number, so that some axes make any divisor of it.
    """

    def __init__(self, devices: np.ndarray | None = None):
        devices = np.asarray(jax.local_devices()) if devices is None else devices
        factors, left = [], devices.size
        while left > 1:
            factors.append(next(n for n in range(2, left + 1) if left % n == 0))
            left //= factors[-1]
        self.mesh = Mesh(devices.reshape(factors), tuple(f"devices{i}" for i in range(len(factors))))

    @property
    def size(self) -> int:
        return self.mesh.size

    def on_each(self, tree: Any) -> Any:
        """Arrays on the devices, whole on each."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def one_on_each(self, apply: Callable[[jax.Array], jax.Array], inputs: np.ndarray) -> np.ndarray:
        """[n, ...] of inputs [n, ...]: `apply`, of batches of `size`, with an input on each device at a time, so that
        one program serves any number of them."""
        parts = [np.asarray(apply(self.place(inputs[rows]))) for rows in batches(len(inputs), self.size)]
        return np.concatenate(parts)[: len(inputs)]

    def strips(self, count: int, height: int) -> int:
        """Of how many devices each has a strip of one picture: as many as `count` pictures leave and divide its
        height."""
        most = max(self.size // max(count, 1), 1)
        return max(n for n in range(1, most + 1) if self.size % n == height % n == 0)

    def place(self, batch: np.ndarray, strips: int = 1) -> jax.Array:
        """On the devices: see `sharding`."""
        return jax.device_put(batch, self.sharding(strips))

    def sharding(self, strips: int = 1) -> NamedSharding:
        """Of a batch whose B is a multiple of `size` over strips; devices that have strips of one picture are
        neighbours.

        Args:
          strips: divides `size` and H.
        """
        across: list[str] = []
        along: list[str] = []
        for name, size in reversed(self.mesh.shape.items()):
            if strips % size == 0:
                along.insert(0, name)
                strips //= size
            else:
                across.insert(0, name)
        return NamedSharding(self.mesh, PartitionSpec(tuple(across), tuple(along)))


def batches(count: int, batch_size: int) -> np.ndarray:
    """Indices [batches, batch_size]; the last batch is filled up with the last index, so that all have one shape."""
    return np.minimum(np.arange(round_up(count, batch_size)), count - 1).reshape(-1, batch_size)


def round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
