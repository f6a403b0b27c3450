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
from pixart_jax.devices.sharding import tree_shardings
from pixart_jax.models.attention import PLAIN
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key


@flax.struct.dataclass
class TrainState:
    """step i32[] counts optimizer steps done; params, ema_params and the moments in opt_state are float32."""

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def init_params(model: PixArt, key: jax.Array):
    """Fresh float32 parameters. Their shapes depend on neither the number of tokens nor the batch, so the inputs are
    tiny."""
    num_tokens = max(model.kv_compress, default=1) ** 2
    # Nor on how attention is computed, but kernels refuse what is so small.
    return model.clone(attention=PLAIN).init(
        key,
        jnp.zeros((1, num_tokens, model.patch_size**2 * model.latent_channels)),
        jnp.zeros(1),
        positions=jnp.zeros((1, num_tokens, 2)),
        num_tokens=jnp.full(1, num_tokens),
        text=None if model.num_classes else jnp.zeros((1, 1, model.text_dim)),
        label=jnp.zeros(1, jnp.int32) if model.num_classes else None,
        image_size=jnp.zeros((1, 2)),
        aspect_ratio=jnp.zeros((1, 1)),
    )["params"]


def _init_state(model: PixArt, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _begin(init_params(model, key), tx)


def _begin(params, tx: optax.GradientTransformation) -> TrainState:
    # The copy must not share buffers with params: both are donated to the step.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, tx.init(params))


def _with_shardings(shapes, mesh: Mesh):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def abstract_params(model: PixArt, mesh: Mesh):
    """Shapes, dtypes and shardings of the parameters, as jax.ShapeDtypeStruct; allocates nothing."""
    return _with_shardings(jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0)), mesh)


def parameter_shapes(model: PixArt) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter; allocates nothing."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}


def kernels_as(dtype, abstract):
    """Shapes of parameters, with kernels of the dtype that matrix products convert them to anyway: half the memory."""

    def leaf(path, leaf):
        is_kernel = getattr(path[-1], "key", None) == "kernel"
        return jax.ShapeDtypeStruct(leaf.shape, dtype if is_kernel else leaf.dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def abstract_state(model: PixArt, tx: optax.GradientTransformation, mesh: Mesh, *, offload: bool = False) -> TrainState:
    """Shapes, dtypes and shardings of the whole state, as jax.ShapeDtypeStruct; allocates nothing.

    Args:
      offload: the optimizer's state lies in the hosts' memory; see `offload.in_host_memory`.
    """
    state = _with_shardings(jax.eval_shape(lambda key: _init_state(model, tx, key), jax.random.key(0)), mesh)
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
