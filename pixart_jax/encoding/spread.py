"""Pictures over devices: one on each, or where there are fewer pictures than devices, a strip of one."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Spread:
    """Batches [B, H, W, C] over these devices.

    Attributes:
      mesh: the devices along an axis for each prime factor of their number, so that some axes make any divisor of it.
    """

    def __init__(self, devices: np.ndarray):
        factors, left = [], devices.size
        while left > 1:
            factors.append(next(n for n in range(2, left + 1) if left % n == 0))
            left //= factors[-1]
        self.mesh = Mesh(devices.reshape(factors), tuple(f"devices{i}" for i in range(len(factors))))

    @property
    def size(self) -> int:
        return self.mesh.size

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
