"""What a training step needs of a device's memory, told before it is compiled, and what of it the backward pass keeps.

The step's gradient is traced, not compiled: of its values those count that are alive at once. That is more than a
compiler needs, which fuses elementwise functions, and it errs to that side.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from jax.sharding import Mesh

from pixart_jax.config import ConfigDict, architecture
from pixart_jax.devices.hardware import find_hardware
from pixart_jax.devices.sharding import MeshSpec, make_mesh, row_shards
from pixart_jax.models.remat import AUTO, BY_WEIGHT
from pixart_jax.objectives.objective import Held
from pixart_jax.training.program import FROM_CONFIG, BatchShapes, Parts, Program

# Of the memory, what a step may need by this account: of seven steps that the TPU compiler took it tells 86 to 95 % of
# their totals (docs/scale.md), gathered weights and the compiler's copies being left out.
USABLE = 0.85
# A TPU's tiles of float32; of smaller types more rows lie in one.
LANES, SUBLANES = 128, 8
# Pictures of the traces: pairs, of which objectives may need two.
_TRACED = (2, 4)


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on each device.

    Attributes:
      state: parameters, EMA, optimizer state, frozen weights and batch.
      gradients: of the parameters, with what else does not grow with the batch.
      activations: what the backward pass needs kept, with what is at work beside it.
    """

    state: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        return self.state + self.gradients + self.activations


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `config.model.remat` comes to: a key of `remat.REMAT_POLICIES`; needs, by policy, of those that were
    looked at; `limit` of the memory, None where there is none."""

    policy: str
    needs: Mapping[str, Need]
    limit: float | None

    def __str__(self) -> str:
        looked = ", ".join(f"{name} needs {need.total / 1e9:.1f} GB" for name, need in self.needs.items())
        limit = "no limit is known" if self.limit is None else f"{USABLE:.0%} of {self.limit / 1e9:.1f} GB may be used"
        return f"{self.policy} ({looked}; {limit})" if looked else f"{self.policy} ({limit})"

    @property
    def fits(self) -> bool:
        """As far as it was looked at."""
        need = self.needs.get(self.policy)
        return need is None or self.limit is None or need.total <= USABLE * self.limit


def memory_limit(device: jax.Device) -> float | None:
    """Bytes that programs may use on a device: what its runtime says, else its vendor; None on a CPU, and where neither
    is known.

    A device that is only described, to compile for, has no runtime.
    """
    if device.platform == "cpu":
        return None
    try:
        stats = device.memory_stats()
    except (jax.errors.JaxRuntimeError, NotImplementedError, AttributeError):
        stats = None
    if stats and stats.get("bytes_limit"):
        return float(stats["bytes_limit"])
    hardware = find_hardware(device.device_kind)
    return hardware.memory_bytes if hardware else None


def settle(
    config: ConfigDict, mesh: Mesh, batch: BatchShapes, *, limit: float | None, parts: Parts = FROM_CONFIG
) -> tuple[ConfigDict, Choice]:
    """The config with what it leaves to the devices decided: how many blocks the loop over blocks takes at a time, and
    for "auto" the lightest policy that fits; and why that one. What is named stays, unlooked at.

    On TPUs there is no loop: what a loop keeps for the backward pass it copies into one array of all blocks and out
    again, which is a quarter to a third of a step's cycles by the compiler's estimate (docs/scale.md). A few blocks at
    a time are worse than one.

    On an accelerator "none" is not tried: it keeps float32 results of norms and elementwise functions that are read
    back more slowly than they are computed again beside the products that "dots" keeps anyway (docs/scale.md). A CPU
    has no memory of its own to run out of: there it is "none".

    Args:
      batch: of the global batch.
      limit: `memory_limit`, of several processes the least, so that all decide alike.
    """
    settled, needs = copy.deepcopy(config), {}
    if not config.model.scan_unroll:
        on_tpu = mesh.devices.flat[0].platform == "tpu"
        settled.model.scan_unroll = architecture(config)["depth"] if on_tpu else 1
    if config.model.remat != AUTO:
        return settled, Choice(config.model.remat, {}, limit)
    names = BY_WEIGHT[1:] if limit is not None else BY_WEIGHT[:1]
    for name in names:
        settled.model.remat = name
        if limit is None:
            break
        needs[name] = step_need(settled, mesh, batch, parts)
        if needs[name].total <= USABLE * limit:
            break
    return settled, Choice(settled.model.remat, needs, limit)


def step_need(config: ConfigDict, mesh: Mesh, batch: BatchShapes, parts: Parts = FROM_CONFIG) -> Need:
    """Of the training step of a config whose policy is settled.

    Two batches are traced, on one device: what differs grows with the batch, the rest does not. On a mesh the one is
    split over rows, tokens and heads, the other like the parameters.
    """
    program = Program(config, mesh, parts)
    few, more = (_gradient_peak(config, mesh, batch, parts, rows) for rows in _TRACED)
    each = (more - few) / (_TRACED[1] - _TRACED[0])
    rows = next(iter(batch.values())).shape[0] / config.train.accumulation_steps / row_shards(mesh)
    state = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves((program.birth.shapes, dict(batch))))
    gradients = max(few - each * _TRACED[0], 0) / (config.mesh.fsdp * config.mesh.tensor)
    if config.train.accumulation_steps > 1:
        gradients += sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(program.state.params))
    return Need(state, gradients, each * max(rows, 1) / (config.mesh.context * config.mesh.tensor))


def _gradient_peak(config: ConfigDict, mesh: Mesh, batch: BatchShapes, parts: Parts, rows: int) -> float:
    """Bytes of the gradient's values, for so many pictures on one device of the mesh."""
    device = mesh.devices.flat[0]
    program = Program(config, make_mesh(MeshSpec(), [device]), parts)

    def bare(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    state, frozen = jax.tree.map(bare, program.birth.shapes)
    pictures = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    gradients = parts.gradients(config, program.adapter)
    traced = jax.make_jaxpr(gradients)(state.params, Held(frozen, state.ema_params, state.step), pictures, keys)
    return peak_bytes(traced.jaxpr, padded=device.platform == "tpu")


def peak_bytes(jaxpr: Jaxpr, *, padded: bool) -> float:
    """The most bytes of values that are alive at once while a program is run in its order, arguments not counted.

    Args:
      padded: as a TPU lays them out, in tiles of its vector memory.
    """
    last = {var: at for at, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if isinstance(var, Var)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, Var)}
    alive: dict[Var, float] = {}
    most = 0.0
    for at, eqn in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(sub, padded=padded) for sub in _inner(eqn.params)), default=0.0)
        made = {var: value_bytes(var.aval, padded=padded) for var in eqn.outvars}
        before, out = sum(alive.values()), sum(made.values())
        # A loop fills its results while its body runs; another program's results are among its own values.
        most = max(most, before + (out + inner if eqn.primitive.name in ("scan", "while") else max(out, inner)))
        alive |= {var: size for var, size in made.items() if var in last}
        for var in [var for var in eqn.invars if isinstance(var, Var) and last[var] == at]:
            alive.pop(var, None)
    return most


def _inner(params: Mapping) -> Iterator[Jaxpr]:
    """The programs in an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def value_bytes(aval, *, padded: bool) -> float:
    """Of an array. `padded`: its two innermost axes in whole tiles, in their order, which kernels insist on; axes of
    one do not count."""
    shape = getattr(aval, "shape", None)
    if shape is None or getattr(aval, "dtype", None) is None:
        return 0.0
    itemsize = aval.dtype.itemsize
    axes = [size for size in shape if size != 1]
    if not padded or len(axes) < 2:
        return math.prod(shape) * itemsize
    rows = SUBLANES * max(4 // itemsize, 1)
    return math.prod(axes[:-2]) * _up(axes[-2], rows) * _up(axes[-1], LANES) * itemsize


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _shard_bytes(leaf) -> float:
    if getattr(leaf.sharding, "memory_kind", None) == "pinned_host":
        return 0.0
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
