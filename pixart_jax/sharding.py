"""The device mesh and where arrays live on it.

Axes: "data" splits only the batch; "fsdp" splits the batch and the parameters, their EMA and the optimizer state.
"""

from __future__ import annotations

import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Path suffix -> axis (counted from the last) that "fsdp" splits; None keeps the array whole on every device. EMA and
# optimizer state have the same path suffixes as the parameters they belong to, but for CAME's statistics. Vectors are
# too small to be worth gathering.
PARTITION_RULES: tuple[tuple[str, int | None], ...] = (
    (r"kernel$", -1),
    (r"(embedding_table|y_embedding)$", -1),
    (r"scale_shift_table$", -1),
    (r"(bias|scale)$", None),
    (r"/(sq|sq_row|sq_col|res_row|res_col)$", None),
)


def make_mesh(fsdp: int, devices=None) -> Mesh:
    """All devices as a ("data", "fsdp") mesh; neighbours share an fsdp group."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(devices.reshape(-1, fsdp), ("data", "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def tree_shardings(tree, mesh: Mesh):
    """A sharding for each leaf of a tree of arrays or shapes, by PARTITION_RULES.

    An axis that the "fsdp" devices do not divide stays whole.

    Raises:
      ValueError: no rule covers a leaf's path.
    """
    size = mesh.shape["fsdp"]

    def leaf_sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, axis in PARTITION_RULES:
            if re.search(pattern, name):
                if axis is None or leaf.shape[axis] % size:
                    return replicated(mesh)
                return NamedSharding(mesh, P(*(None,) * (len(leaf.shape) - 1), "fsdp"))
        raise ValueError(f"no partition rule covers {name} {leaf.shape}; add one to sharding.PARTITION_RULES")

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def put_whole(tree, sharding: NamedSharding):
    """Arrays, or keys, that every process has whole, as global ones."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(value):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(value)))
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree)


def fetch_whole(array: jax.Array) -> np.ndarray:
    """A global array's value, on every process. A collective operation where there are several."""
    return multihost_utils.process_allgather(array, tiled=True)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as one global array each, split over all devices."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
