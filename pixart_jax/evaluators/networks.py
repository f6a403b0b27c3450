"""Networks that look at pictures, whose features the distances between sets of pictures are made of.

Each kind of network has a file that opens it from its weights; what measures knows them by this class alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pixart_jax.devices.sharding import batch_sharding, make_mesh, replicated
from pixart_jax.errors import InputError

# Of a network's `outputs`: what distances are measured between, and what Inception Score is made of.
FEATURES, LOGITS = "features", "logits"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network with its weights; nothing is on a device yet.

    Attributes:
      name: what people call it, e.g. "FID-Inception".
      sha256: hex digest of its weights' file or files.
      published: whether these are the weights that the literature knows it with; None where that cannot be told.
      preprocessing: the name of what `prepare` does.
      input_shape: of a prepared picture, (H, W, 3); a network for captions has that of theirs.
      outputs: width of each of its outputs by name; FEATURES is among them.
      prepare: uint8[h, w, 3] of any size to f32[H, W, 3]; called from several threads at once.
      apply: (parameters, f32[B, H, W, 3]) to f32[B, width] of each output; compiled by `OnDevices`.
      params: its parameters, arrays of numpy.
    """

    name: str
    sha256: str
    published: bool | None
    preprocessing: str
    input_shape: tuple[int, ...]
    outputs: Mapping[str, int]
    prepare: Callable[[Any], np.ndarray]
    apply: Callable[..., Mapping[str, jax.Array]]
    params: object


class OnDevices:
    """A network on all devices of this process; each takes its share of a batch."""

    def __init__(self, network: FeatureNetwork, batch_size: int):
        self.network = network
        self._mesh = make_mesh(devices=jax.local_devices())
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._params = jax.device_put(network.params, replicated(self._mesh))
        self._apply = jax.jit(network.apply)

    def __call__(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """f32[N, width] of each output.

        Args:
          pictures: N prepared ones; any number: they are filled up to whole batches, so that one program serves all.
        """
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(pictures), self.batch_size):
            part = pictures[start : start + self.batch_size]
            batch = np.zeros((self.batch_size, *self.network.input_shape), part[0].dtype)
            batch[: len(part)] = part
            outputs = self._apply(self._params, jax.device_put(batch, batch_sharding(self._mesh)))
            found.append({name: np.asarray(outputs[name])[: len(part)] for name in self.network.outputs})
        empty = {name: np.zeros((0, width), np.float32) for name, width in self.network.outputs.items()}
        return {name: np.concatenate([none, *(part[name] for part in found)]) for name, none in empty.items()}


def checksum(path: pathlib.Path, what: str) -> str:
    """Hex digest of a file of weights; raises InputError, with `what` they are of, if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; name the weights of {what}") from error
