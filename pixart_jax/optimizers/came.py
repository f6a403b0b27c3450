"""CAME, the optimizer of PixArt-Σ, on parameters that are laid out otherwise than PyTorch's.

Source: Luo et al. 2023, "CAME: Confidence-guided Adaptive Memory Efficient Optimization", Algorithm 2, in the order of
operations of the package that PixArt-Σ trains with, came-pytorch 0.1.3.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class CameSpec:
    """What CAME has and Adam has not.

    Attributes:
      b3: decay rate of the instability.
      eps1, eps2: added to the squared gradient and to the instability.
      clip_threshold: largest root mean square of one tensor's update, before momentum.
    """

    b3: float
    eps1: float
    eps2: float
    clip_threshold: float


class CameState(NamedTuple):
    """Float32. Both are trees like the parameters'.

    Attributes:
      mu: momentum, of the parameter's shape.
      statistics: {"sq_row", "sq_col", "res_row", "res_col"} of a factored tensor in the reference's layout: moving
        averages of the squared gradient and of the instability over its last and its last but one axis. {"sq"} of a
        vector, of its shape.
    """

    mu: Any
    statistics: Any


class Layout(NamedTuple):
    """`ours` and `reference` are einops patterns of one tensor (of one block); equal sizes are called h and w."""

    ours: str
    reference: str


# CAME factors the last two axes of whatever has two or more and clips each tensor by its own root mean square, so it
# depends on how a model is cut into tensors. Path suffix -> layout. Transposing a matrix swaps rows and columns, which
# changes nothing but rounding, so Dense kernels [in, out] stay as they are.
LAYOUTS: tuple[tuple[str, Layout], ...] = (
    (r"x_embedder/kernel$", Layout("(h w c) d", "d c h w")),
    (r"attn/sr_kernel$", Layout("(h w) d", "d 1 h w")),
    (r"/kernel$", Layout("i o", "i o")),
    (r"/lora_(a|b)$", Layout("i o", "i o")),
    (r"/lora_magnitude$", Layout("d", "d")),
    (r"(scale_shift_table|embedding_table|y_embedding)$", Layout("n d", "n d")),
    (r"(bias|scale)$", Layout("d", "d")),
)
# Blocks of equal kind are stacked on a leading axis; each is a tensor of its own in the reference.
_STACK = re.compile(r"(blocks_\d+|copies(_\d+)?)/")


def scale_by_came(spec: CameSpec, *, b1: float, b2: float, patch_size: int) -> optax.GradientTransformation:
    """Gradients to CAME's updates, before learning rate and weight decay; parameters by LAYOUTS.

    The state takes 4 bytes per parameter for the momentum and 8·(m + n) for an m×n matrix: 4.01 bytes per parameter of
    an XL/2, where AdamW's takes 8. A tensor whose gradient is always zero, as the null caption's, gets updates of
    zero.

    There is no bias correction. Instability is not estimated for vectors, whose update is the momentum.

    Args:
      b1, b2: decay rates of the momentum and of the squared gradient.
      patch_size: the model's.

    Raises:
      ValueError: on init and on update, if no layout covers a parameter's path.
    """

    def init_fn(params):
        def statistics(path, param):
            tensor = _view(path, param, patch_size)
            shape = jax.eval_shape(tensor.to_reference, param).shape
            if not tensor.factored:
                return {"sq": jnp.zeros(shape, jnp.float32)}
            row, col = shape[:-1], shape[:-2] + shape[-1:]
            return {
                f"{name}_{axis}": jnp.zeros(size, jnp.float32)
                for name in ("sq", "res")
                for axis, size in (("row", row), ("col", col))
            }

        mu = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return CameState(mu, jax.tree_util.tree_map_with_path(statistics, params))

    def update_fn(updates, state, params=None):
        del params
        grads = jax.tree_util.tree_leaves_with_path(updates)
        treedef: Any = jax.tree.structure(updates)  # jaxlib ships no types
        new = [
            _update(_view(path, grad, patch_size), grad, mu, statistics, spec, b1, b2)
            for (path, grad), mu, statistics in zip(
                grads, treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.statistics), strict=True
            )
        ]
        new_updates, mu, statistics = (treedef.unflatten(part) for part in zip(*new, strict=True))
        return new_updates, CameState(mu, statistics)

    return optax.GradientTransformation(init_fn, update_fn)


class _View(NamedTuple):
    """One parameter as the reference has it; `per_tensor` maps a function of one tensor over a stack of them."""

    to_reference: Callable[[jax.Array], jax.Array]
    to_ours: Callable[[jax.Array], jax.Array]
    per_tensor: Callable[[Callable], Callable]
    factored: bool


def _view(path, param, patch_size: int) -> _View:
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    layout = next((layout for pattern, layout in LAYOUTS if re.search(pattern, f"/{name}")), None)
    if layout is None:
        raise ValueError(f"no layout covers {name} {param.shape}; add one to optimizers.came.LAYOUTS")
    stacked = _STACK.match(name) is not None
    if param.ndim != len(re.sub(r"\(.*\)", "x", layout.ours).split()) + stacked:
        raise ValueError(f"{name} {param.shape} has not the axes of its layout in optimizers.came.LAYOUTS, {layout}")
    stack = "depth " * stacked
    ours, reference = stack + layout.ours, stack + layout.reference
    side = patch_size if " c)" in layout.ours else math.isqrt(param.shape[stacked])
    sizes = {"h": side, "w": side} if "(" in layout.ours else {}
    return _View(
        lambda x: einops.rearrange(x, f"{ours} -> {reference}", **sizes),
        lambda x: einops.rearrange(x, f"{reference} -> {ours}", **sizes),
        jax.vmap if stacked else lambda function: function,
        factored=len(layout.reference.split()) > 1,
    )


def _update(view: _View, grad, mu, statistics, spec: CameSpec, b1: float, b2: float):
    """(update, momentum, statistics) of one parameter."""

    def one(grad, mu, statistics):
        update, sq = _normalise(grad, jnp.square(grad) + spec.eps1, statistics, "sq", b2)
        update = update / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(update))) / spec.clip_threshold, 1.0)
        mu = b1 * mu + (1 - b1) * update
        if not view.factored:
            return mu, mu, sq
        instability = jnp.square(update - mu) + spec.eps2
        update, res = _normalise(mu, instability, statistics, "res", spec.b3)
        return update, mu, sq | res

    grad, mu = (view.to_reference(x.astype(jnp.float32)) for x in (grad, mu))
    update, mu, statistics = view.per_tensor(one)(grad, mu, statistics)
    return view.to_ours(update), view.to_ours(mu), statistics


def _normalise(x, power, statistics, name: str, decay: float):
    """x / √(moving average of `power`), with the average that `statistics` hold under `name`, and its successor."""

    def average(key, new):
        return decay * statistics[key] + (1 - decay) * new

    if x.ndim < 2:
        sq = average(name, power)
        return jax.lax.rsqrt(sq) * x, {name: sq}
    row, col = average(f"{name}_row", power.mean(-1)), average(f"{name}_col", power.mean(-2))
    row_factor = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
    factor = row_factor[..., :, None] * jax.lax.rsqrt(col)[..., None, :]
    return factor * x, {f"{name}_row": row, f"{name}_col": col}
