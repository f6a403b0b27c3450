"""Everything a run carries from step to step, and its birth directly on the mesh."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pixart_jax.devices.offload import in_host_memory
from pixart_jax.models.params import init_params, with_shardings
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key


@flax.struct.dataclass
class TrainState:
    """step i32[] counts optimizer steps done; params, ema_params and the moments in opt_state are float32."""

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def _init_state(model: PixArt, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _begin(init_params(model, key), tx)


def _begin(params, tx: optax.GradientTransformation) -> TrainState:
    # The copy must not share buffers with params: both are donated to the step.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, tx.init(params))


def abstract_state(model: PixArt, tx: optax.GradientTransformation, mesh: Mesh, *, offload: bool = False) -> TrainState:
    """Shapes, dtypes and shardings of the whole state, as jax.ShapeDtypeStruct; allocates nothing.

    Args:
      offload: the optimizer's state lies in the hosts' memory; see `offload.in_host_memory`.
    """
    state = with_shardings(jax.eval_shape(lambda key: _init_state(model, tx, key), jax.random.key(0)), mesh)
    return state.replace(opt_state=in_host_memory(state.opt_state)) if offload else state


def create_state(
    model: PixArt, tx: optax.GradientTransformation, mesh: Mesh, seed: int, *, offload: bool = False
) -> TrainState:
    """A fresh state, each array made where it will live: no device ever holds all of it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, tx, mesh, offload=offload))
    return jax.jit(lambda key: _init_state(model, tx, key), out_shardings=shardings)(stream_key(seed, "init"))


def start_state(arrays: dict[str, np.ndarray], tx: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """A state of step 0 with these parameters: the EMA equals them, and the optimizer has seen nothing.

    Args:
      arrays: '/'-joined path to f32 array of each parameter. Emptied: one after the other goes to the devices, of which
        none ever holds all.
      abstract: `abstract_state`'s.
    """

    def place(path, leaf):
        array = arrays.pop("/".join(key.key for key in path))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    params = jax.tree_util.tree_map_with_path(place, abstract.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda params: _begin(params, tx), out_shardings=shardings, donate_argnums=0)(params)
