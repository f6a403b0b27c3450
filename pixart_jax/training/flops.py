"""FLOPs of a program that nobody has compiled: XLA counts them on the lowered program, and nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pixart_jax.adapters.adapter import Adapter, Params
from pixart_jax.adapters.full import Full
from pixart_jax.models.attention import PLAIN
from pixart_jax.models.params import apply_of, init_params
from pixart_jax.models.pixart import PixArt
from pixart_jax.objectives.objective import Gradients, Held


def count_flops(function: Callable, *arguments) -> float | None:
    """FLOPs of one call, before the compiler's optimisations: a multiply-add is two, exp and its like are none.

    A loop counts as one pass and a custom kernel as nothing: unroll the one and replace the other.

    Args:
      arguments: trees of arrays or of jax.ShapeDtypeStruct, of which only shapes and dtypes are looked at.

    Returns:
      The count, or None where JAX_PLATFORMS leaves out the CPU: on GPU and TPU jax has no count before compilation.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    with jax.default_device(cpu):
        analysis = jax.jit(function).lower(*shapes).cost_analysis()
    return None if analysis is None else analysis["flops"]


def forward_flops(
    model: PixArt, tokens, t, conditions: Mapping, adapter_of: Callable[[PixArt], Adapter] | None = None
) -> float | None:
    """FLOPs of a forward pass.

    Args:
      model: what is ignored of it, see `gradient_flops`.
      tokens, t, conditions: its arguments, as arrays or jax.ShapeDtypeStruct.
      adapter_of: the adapter of such a model, of which the pass is to be; None is the model's own.

    Returns:
      FLOPs, or None as `count_flops`.
    """
    plain = _countable(model)
    adapter: Adapter = Full(apply_of(plain)) if adapter_of is None else adapter_of(plain)
    trained, frozen = jax.eval_shape(lambda key: adapter.split(init_params(plain, key), key), jax.random.key(0))
    return count_flops(
        lambda trained, frozen, tokens, t, conditions: adapter.apply(trained, frozen, tokens, t, **conditions),
        trained,
        frozen,
        tokens,
        t,
        dict(conditions),
    )


def _countable(model: PixArt) -> PixArt:
    """The model without loops and custom kernels, and without what is computed again."""
    return model.clone(scan_unroll=model.depth, remat="none", attention=PLAIN)


def gradient_flops(
    model: PixArt,
    parts_of: Callable[[PixArt], tuple[Adapter, Gradients]],
    batch: Mapping,
    beside: Mapping[str, Params] | None = None,
) -> float | None:
    """FLOPs of an objective's gradient for one global batch: what a step must compute, however it does it.

    What rematerialisation computes again costs time and is no work, so it does not count; nor do the optimizer and the
    EMA, whose share falls with the batch. Padding counts as if it were real.

    Args:
      model: the model that is trained; how it is unrolled, rematerialised and what its attention runs on is ignored.
      parts_of: the adapter and the objective of such a model.
      batch: name -> array or jax.ShapeDtypeStruct with the global batch as leading axis.
      beside: what the objective finds in the frozen half beside the adapter's own, likewise.

    Returns:
      FLOPs of the step over all devices and accumulation steps, or None as `count_flops`.
    """
    plain = _countable(model)
    adapter, gradients = parts_of(plain)
    trained, frozen = jax.eval_shape(
        lambda key: adapter.split(init_params(plain, key), key), jax.eval_shape(lambda: jax.random.key(0))
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch["tokens"].shape[0]))
    held = Held(
        {**frozen, **beside} if beside else frozen, adapter.drawn(trained), jax.eval_shape(lambda: jnp.int32(0))
    )
    return count_flops(gradients, trained, held, dict(batch), keys)
