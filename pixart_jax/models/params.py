"""The model's parameters before there are any: their shapes, their birth, the dtype they are drawn with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pixart_jax.devices.sharding import Rule, tree_shardings
from pixart_jax.models.attention import PLAIN
from pixart_jax.models.pixart import ModelOutput, PixArt


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


def apply_of(model: PixArt) -> Callable[..., ModelOutput]:
    """The model as (params, tokens, t, **conditions) -> ModelOutput."""

    def apply(params, tokens, t, **conditions):
        return model.apply({"params": params}, tokens, t, **conditions)

    return apply


def with_shardings(shapes, mesh: Mesh, rules: Sequence[Rule] = ()):
    """A tree of shapes with the sharding of each, see `sharding.tree_shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh, rules),
    )


def abstract_params(model: PixArt, mesh: Mesh):
    """Shapes, dtypes and shardings of the parameters, as jax.ShapeDtypeStruct; allocates nothing."""
    return with_shardings(_shapes(model), mesh)


def parameter_shapes(model: PixArt) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter; allocates nothing."""
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(_shapes(model), sep="/").items()}


@functools.lru_cache(maxsize=16)  # Many ask, and tracing a model takes a second.
def _shapes(model: PixArt):
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def kernels_as(dtype, abstract):
    """Shapes of parameters, with kernels of the dtype that matrix products convert them to anyway: half the memory."""

    def leaf(path, leaf):
        is_kernel = getattr(path[-1], "key", None) == "kernel"
        return jax.ShapeDtypeStruct(leaf.shape, dtype if is_kernel else leaf.dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract)
