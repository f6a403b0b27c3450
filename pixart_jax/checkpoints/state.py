"""Everything a run carries from step to step, and its birth directly on the mesh."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Adapter, Params
from pixart_jax.checkpoints.checksums import tree_checksums
from pixart_jax.devices.offload import in_host_memory
from pixart_jax.devices.sharding import replicated
from pixart_jax.models.params import abstract_params, init_params, with_shardings
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key


@flax.struct.dataclass
class TrainState:
    """step i32[] counts optimizer steps done; params, ema_params and the moments in opt_state are float32.

    ema_params are those of `Adapter.drawn`, which are all of params unless some only help to train the rest.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState


# What a checkpoint has an item for; the step is its name.
ARRAYS = ("params", "ema_params", "opt_state")


def items_of(state: TrainState) -> dict[str, Params]:
    """The arrays that a checkpoint holds of a state, or what stands for them, by the item's name."""
    return {name: getattr(state, name) for name in ARRAYS}


def compile_checksums(state: TrainState) -> jax.stages.Compiled:
    """The program that computes those of what a checkpoint keeps of such a state, where it lies; takes `items_of`."""
    # Small, and on every process, whatever the shardings.
    everywhere = state.step.sharding
    return jax.jit(tree_checksums, out_shardings=everywhere).lower(items_of(state)).compile()


def _begin(
    adapter: Adapter, tx: optax.GradientTransformation, base: Params, key: jax.Array, before: Params | None = None
) -> tuple[TrainState, Params]:
    trained, frozen = adapter.split(base, key)
    trained = trained if before is None else before
    # The copy must not share buffers with the parameters: both are donated to the step.
    ema_params = jax.tree.map(jnp.copy, adapter.drawn(trained))
    return TrainState(jnp.zeros((), jnp.int32), trained, ema_params, tx.init(trained)), frozen


@dataclasses.dataclass(frozen=True)
class Birth:
    """How a state and the frozen half beside it come to be, each array where it will live: no device holds all of them.

    Attributes:
      model, adapter, tx: what is trained, what of it, and by which optimizer.
      mesh: devices that they are laid over.
      seed: of the run.
      offload: the optimizer's state lies in the hosts' memory; see `offload.in_host_memory`.
      beside: arrays on the mesh that the frozen half holds beside what the adapter puts there, by other names.
    """

    model: PixArt
    adapter: Adapter
    tx: optax.GradientTransformation
    mesh: Mesh
    seed: int
    offload: bool = False
    beside: dict[str, Params] = dataclasses.field(default_factory=dict, compare=False)

    @functools.cached_property
    def shapes(self) -> tuple[TrainState, Params]:
        """Shapes, dtypes and shardings of state and frozen half, as jax.ShapeDtypeStruct; allocates nothing."""
        state, frozen = self._split
        return state, self._whole(frozen, jax.tree.map(_shape_of, self.beside))

    @functools.cached_property
    def _split(self) -> tuple[TrainState, Params]:
        """The same, of what the adapter makes alone."""
        shapes = jax.eval_shape(lambda: self._fresh(jax.random.key(0), jax.random.key(0)))
        state, frozen = with_shardings(shapes, self.mesh, self.adapter.rules())
        return (state.replace(opt_state=in_host_memory(state.opt_state)) if self.offload else state), frozen

    @property
    def holds_something(self) -> bool:
        """Whether there is a frozen half, which a run that goes on makes again."""
        return bool(jax.tree.leaves(self._split[1]))

    def fresh(self) -> tuple[TrainState, Params]:
        """Of random parameters."""
        state, frozen = jax.jit(self._fresh, out_shardings=_shardings(self._split))(*self._keys())
        return state, self._whole(frozen, self.beside)

    def start(
        self, arrays: dict[str, np.ndarray], trained: dict[str, np.ndarray] | None = None
    ) -> tuple[TrainState, Params]:
        """Of these parameters of the model, at step 0: the EMA equals them, and the optimizer has seen nothing.

        Args:
          arrays: '/'-joined path to f32 array of each parameter. Emptied: one after the other goes to the devices.
          trained: likewise of the trained half, in place of what the adapter makes.
        """
        born = functools.partial(_begin, self.adapter, self.tx)
        base = _place(arrays, abstract_params(self.model, self.mesh))
        before = None if trained is None else _place(trained, self.shapes[0].params)
        begin = jax.jit(born, out_shardings=_shardings(self._split), donate_argnums=0)
        state, frozen = begin(base, self._keys()[1], before)
        return state, self._whole(frozen, self.beside)

    def frozen(self, arrays: dict[str, np.ndarray] | None) -> Params:
        """The frozen half alone, as `start`, or without arrays `fresh`, has made it."""
        return self._whole(self._frozen(arrays), self.beside)

    def _frozen(self, arrays: dict[str, np.ndarray] | None) -> Params:
        if not self.holds_something:
            return self._split[1]
        shardings = _shardings(self._split[1])
        if arrays is None:
            return jax.jit(lambda *keys: self._fresh(*keys)[1], out_shardings=shardings)(*self._keys())
        frozen = jax.jit(lambda base, key: self.adapter.split(base, key)[1], out_shardings=shardings, donate_argnums=0)
        return frozen(_place(arrays, abstract_params(self.model, self.mesh)), self._keys()[1])

    def frozen_checksum(self, frozen: Params) -> str | None:
        """Of a frozen half, wherever it lies; None of one that is empty."""
        if not self.holds_something:
            return None
        checksums = jax.jit(tree_checksums, out_shardings=replicated(self.mesh))(frozen)
        return f"{zlib.crc32(np.asarray(checksums).tobytes()):08x}"

    def _fresh(self, init_key: jax.Array, adapter_key: jax.Array) -> tuple[TrainState, Params]:
        return _begin(self.adapter, self.tx, init_params(self.model, init_key), adapter_key)

    def _whole(self, frozen: Params, beside: dict[str, Params]) -> Params:
        return {**frozen, **beside} if beside else frozen

    def _keys(self) -> tuple[jax.Array, jax.Array]:
        return stream_key(self.seed, "init"), stream_key(self.seed, "adapter")


def _place(arrays: dict[str, np.ndarray], shapes: Params) -> Params:
    """Arrays by '/'-joined path on the devices, as the tree of their shapes and shardings says."""

    def place(path, leaf):
        array = arrays.pop("/".join(key.key for key in path))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(place, shapes)


def _shape_of(array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
