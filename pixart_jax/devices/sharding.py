"""The device mesh, and where arrays live on it.

| axis | splits |
|---|---|
| "data" | the batch |
| "fsdp" | the batch, and the parameters, their EMA and the optimizer state, which are gathered a layer at a time |
| "context" | each image's tokens: the residual stream, the queries of self-attention, the batch's tokens |
| "tensor" | the heads of attention and the hidden layer of each MLP, with the matrices around them |

Sources: Megatron (Shoeybi et al. 2019) §3 for "tensor"; ZeRO (Rajbhandari et al. 2020) stage 3 for "fsdp".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pixart_jax.errors import InputError

# From the slowest network to the fastest: neighbours along the last axis talk most.
AXES = ("data", "fsdp", "context", "tensor")

# The axes along one dimension of an array, by what the dimension counts. Rows are samples of a batch.
Axes = tuple[str, ...]
ROWS: Axes = ("data", "fsdp")
TOKENS: Axes = ("context",)
HEADS: Axes = ("tensor",)
WHOLE: Axes = ()

# What a batch has one of for each token, on its second axis.
PER_TOKEN = ("tokens", "positions", "control", "noise", "align")

# Path's end -> axes of the mesh along each of the array's last dimensions; WHOLE, and the dimensions before, are not
# split. EMA and optimizer state have the same ends as the parameters they belong to, but for CAME's statistics.
Rule = tuple[str, tuple[Axes, ...]]
PARTITION_RULES: tuple[Rule, ...] = (
    # Pairs of matrices: the first splits its outputs, the second its inputs, so that only the second's are summed.
    (r"(cross_attn/q_linear|fc1)/kernel$", (("fsdp",), ("tensor",))),
    (r"(attn/proj|fc2)/kernel$", (("tensor",), ("fsdp",))),
    # Their columns are all of q, then all of k, then all of v: a run of columns is no set of heads. They are kept by
    # rows, and `models.layers.HeadsDense` exchanges rows for heads where they are used.
    (r"attn/(qkv|kv_linear)/kernel$", (("fsdp", "tensor"), WHOLE)),
    # Embedders, modulation, the last layer; the encoders'.
    (r"kernel$", (("fsdp",),)),
    (r"(embedding_table|y_embedding|scale_shift_table)$", (("fsdp",),)),
    # Vectors are too small to be worth gathering.
    (r"(bias|scale)$", (WHOLE,)),
    (r"/(sq|sq_row|sq_col|res_row|res_col)$", (WHOLE,)),
    # Three numbers of Muon's.
    (r"/ns_coeffs$", (WHOLE,)),
)


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """How many devices lie along each axis: `config.mesh`. -1 along "data" is all that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """The sizes of AXES for that many devices.

        Raises:
          InputError: they cannot be laid out so.
        """
        sizes = dataclasses.asdict(self)
        if self.data == -1:
            del sizes["data"]
        product = math.prod(sizes.values())
        if product < 1 or num_devices % product or (self.data != -1 and product != num_devices):
            settings = " times ".join(f"config.mesh.{name} = {size}" for name, size in sizes.items() if size != 1)
            raise InputError(
                f"{settings} must divide the number of devices, {num_devices}"
                if self.data == -1
                else f"{settings or 'config.mesh.data = 1'} must be the number of devices, {num_devices}; with "
                "config.mesh.data=-1 it is the rest"
            )
        return tuple({"data": num_devices // product, **sizes}[name] for name in AXES)


def arrange_devices(spec: MeshSpec, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array with a dimension for each of AXES, neighbours where the hardware has them.

    Within a slice of a TPU, or a group of GPUs with fast links, axes follow the hardware's own. Over several, "data"
    takes the slow links and, where it is too small for all, "fsdp" the rest; "context" and "tensor" stay within one.

    Raises:
      InputError: the sizes do not fit the number of devices or slices.
    """
    shape = spec.shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, fsdp, context, tensor = shape
    data_over = math.gcd(data, slices)
    fsdp_over = slices // data_over
    if fsdp % fsdp_over or len(devices) % slices:
        raise InputError(
            f"config.mesh: {len(devices)} devices lie in {slices} slices, which must divide data times fsdp, "
            f"{data} times {fsdp}: config.mesh.context = {context} and config.mesh.tensor = {tensor} stay within one"
        )
    within = (data // data_over, fsdp // fsdp_over, context, tensor)
    return create_hybrid_device_mesh(within, (data_over, fsdp_over, 1, 1), devices, allow_split_physical_axes=True)


def make_mesh(spec: MeshSpec = MeshSpec(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of AXES over the devices, by default all; see `arrange_devices`."""
    return Mesh(arrange_devices(spec, jax.devices() if devices is None else devices), AXES)


# --------------------------------------------------------------------------------------------------------------- State.


def path_name(path) -> str:
    """The '/'-joined name of a leaf, from its path in a tree of dicts and dataclasses."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def tree_shardings(tree, mesh: Mesh, rules: Sequence[Rule] = ()):
    """A sharding for each leaf of a tree of arrays or shapes, by PARTITION_RULES.

    An axis that does not divide its dimension leaves it whole, and so does one that the mesh lacks.

    Args:
      rules: asked before PARTITION_RULES.

    Raises:
      ValueError: no rule covers a leaf's path.
    """

    def leaf_sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        name = path_name(path)
        for pattern, rule in (*rules, *PARTITION_RULES):
            if re.search(pattern, name):
                return NamedSharding(mesh, _partition(mesh, rule, leaf.shape))
        raise ValueError(f"no partition rule covers {name} {leaf.shape}; add one to sharding.PARTITION_RULES")

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def _partition(mesh: Mesh, rule: Sequence[Axes], shape: tuple[int, ...]) -> P:
    found = [_fitting(mesh, names, size) for names, size in zip(rule, shape[-len(rule) :], strict=True)]
    if not any(found):
        return P()
    # As jax writes them: None for no axis, the name itself for one.
    parts = [names if len(names) > 1 else names[0] if names else None for names in found]
    return P(*(None,) * (len(shape) - len(rule)), *parts)


def _fitting(mesh: Mesh, names: Axes, size: int) -> Axes:
    """Those axes of the mesh over which a dimension can be split evenly, one after the other."""
    fitting, parts = [], 1
    for name in names:
        if name in mesh.shape and size % (parts * mesh.shape[name]) == 0:
            fitting.append(name)
            parts *= mesh.shape[name]
    return tuple(fitting)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


# --------------------------------------------------------------------------------------------------------- Activations.


def dividing_axes(mesh: Mesh, names: Axes, size: int) -> Axes:
    """Those axes of the mesh, of more than one device, over which a dimension can be split evenly."""
    return tuple(name for name in _fitting(mesh, names, size) if mesh.shape[name] > 1)


def constrain(x, mesh: Mesh | None, *dims: Axes | None):
    """`x`, told to the compiler to lie split over the mesh.

    Args:
      mesh: None, or of one device, says nothing.
      dims: the axes along each of x's first dimensions; None leaves a dimension to the compiler, which has all of them
        where no axis divides its dimension.
    """
    if mesh is None or mesh.size == 1:
        return x
    found = [dim and dividing_axes(mesh, dim, size) for dim, size in zip(dims, x.shape[: len(dims)], strict=True)]
    if not any(found):
        return x
    spec = P(*(P.UNCONSTRAINED if names is None else names for names in found))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


# ------------------------------------------------------------------------------------------------------------- Batches.


def batch_sharding(mesh: Mesh, name: str = "") -> NamedSharding:
    """Of a batch's array of that name: its rows, and the tokens where it has one of each."""
    axes = [tuple(axis for axis in names if axis in mesh.shape) for names in (ROWS, TOKENS)]
    return NamedSharding(mesh, P(*axes) if name in PER_TOKEN else P(axes[0]))


def fitting_sharding(mesh: Mesh, shape: Sequence[int], *dims: Axes) -> NamedSharding:
    """Of an array whose first dimensions lie along these axes; where one cannot be split evenly, it is whole."""
    return NamedSharding(mesh, P(*(dividing_axes(mesh, names, size) for names, size in zip(dims, shape, strict=False))))


def row_shards(mesh: Mesh) -> int:
    """The number of parts that a batch's rows are split into."""
    return math.prod(mesh.shape.get(name, 1) for name in ROWS)


@functools.lru_cache
def batch_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(number of this process's share of every batch, number of shares).

    Processes that have parts of the same images, because "context" or "tensor" goes across them, read the same share.

    Args:
      process: another one than this.

    Raises:
      InputError: some rows of a batch are on several processes that do not have all rows in common.
    """
    rows = mesh.devices.reshape(row_shards(mesh), -1)
    parts: dict[int, set[int]] = {}
    for i, devices in enumerate(rows):
        for device in devices:
            parts.setdefault(device.process_index, set()).add(i)
    shares = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, shares)) != len(rows) or len(set(map(len, shares))) > 1:
        raise InputError(
            f"config.mesh.context = {mesh.shape['context']} and config.mesh.tensor = {mesh.shape['tensor']}: cannot be "
            f"laid over {len(parts)} processes so that those with the same images have all in common; make their "
            "product divide the devices of a process, or be a multiple of them"
        )
    mine = parts[jax.process_index() if process is None else process]
    return shares.index(tuple(sorted(mine))), len(shares)


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


def gather_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows, in their order, on every process; process i of P brings those numbered i, i + P and so on.

    A collective operation where there are several.
    """
    processes = jax.process_count()
    if processes == 1:
        return rows
    padded = np.zeros((-(-count // processes), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    gathered = multihost_utils.process_allgather(padded)
    return np.swapaxes(gathered, 0, 1).reshape(-1, *rows.shape[1:])[:count]


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch as one global array each."""
    _, shares = batch_share(mesh)
    # With several processes JAX takes what it is told here for an accident.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(
                batch_sharding(mesh, name), value, (len(value) * shares, *value.shape[1:])
            )
            for name, value in batch.items()
        }
