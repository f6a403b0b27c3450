"""LoRA: to the product with a frozen matrix W comes that with a trained one of low rank, s·B·A.

Sources: LoRA (Hu et al. 2021, arXiv:2106.09685) §4.1; rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732);
DoRA (Liu et al. 2024, arXiv:2402.09353) eq. 5, the norm constant in the gradient (§4.3). Conventions are PEFT's.

The low-rank products are computed beside the frozen one, and no adapted matrix is made: at XL/2 those would be as large
as the model, and so would be their gradients before they are contracted to those of A and B. The model knows nothing of
it: its Dense layers are intercepted as they are called, and find A and B beside their own kernels among the parameters,
so that the loop over the blocks hands each block its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.adapters.adapter import Parameters, Params
from pixart_jax.adapters.layers import REFERENCE_TARGETS, Layer, by_pattern, is_target, layers_of, part_names
from pixart_jax.devices.sharding import WHOLE, Rule
from pixart_jax.models.layers import HeadsDense
from pixart_jax.samplers.steps import Apply

INITS = ("kaiming", "gaussian")

# What a layer's adapter holds, each with a leading axis of blocks where the layer is stacked. Trained, in float32:
# A [inputs, rank], B [rank, outputs] and DoRA's magnitudes [outputs].
A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
# Held: s []; 1 where there are magnitudes, or 0 []; and a number of its own for dropout, i32[].
SCALE, IS_DORA, SALT = "lora_scale", "lora_is_dora", "lora_salt"
# Under which the frozen half has what is held, beside the base.
_HELD = "lora"


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """What is adapted, and how.

    Attributes:
      rank, alpha: s = alpha/rank.
      targets: diffusers' names of the layers, or what those end with after a dot.
      pattern: a regular expression of whole names in place of them, unless it is "".
      rank_pattern, alpha_pattern: (regular expression, another rank or alpha of the layers that it fits), see
        `layers.by_pattern`.
      rslora: s = alpha/√rank.
      dora: the columns of W + s·B·A are scaled to trained lengths.
      dropout: share of the inputs of A that training sets to 0.
      init: one of INITS, of A: "kaiming" U(±1/√inputs), as PEFT's default; "gaussian" N(0, 1/rank²), as the reference's
        scripts. B begins as zeros, so that nothing is changed at first.
    """

    rank: int = 16
    alpha: float = 8.0
    targets: tuple[str, ...] = REFERENCE_TARGETS
    pattern: str = ""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    init: str = "kaiming"

    def of(self, name: str) -> tuple[int, float]:
        """Rank and alpha of a layer; rank 0 of one that is not adapted."""
        if not is_target(name, self.targets, self.pattern):
            return 0, self.alpha
        rank, alpha = by_pattern(self.rank_pattern, name), by_pattern(self.alpha_pattern, name)
        return self.rank if rank is None else int(rank), self.alpha if alpha is None else alpha


def scaling(rank: int, alpha: float, rslora: bool) -> float:
    """s."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


@dataclasses.dataclass(frozen=True)
class Lora:
    """The `Adapter` of LoRA.

    Attributes:
      model: called with the base's parameters, or with what another adapter makes of them.
      spec: what `split` makes; `apply` goes by what it is given, but for the dropout.
      dtype: of the frozen kernels, which is that of the matrix products they are for. What else is frozen stays as is.
    """

    model: Apply
    spec: LoraSpec = LoraSpec()
    dtype: Any = jnp.float32

    def split(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        flat = _flat(base)
        frozen = {path: leaf.astype(self.dtype) if path.endswith("kernel") else leaf for path, leaf in flat.items()}
        trained: dict[str, Any] = {}
        held: dict[str, Any] = {}
        for number, layer in enumerate(layers_of({path: leaf.shape for path, leaf in flat.items()})):
            ranks, alphas = zip(*map(self.spec.of, layer.names), strict=True)
            if not any(ranks):
                continue
            kernel = layer.columns(frozen[f"{layer.module}/kernel"])
            arrays = _begin(layer, np.array(ranks), alphas, self.spec, kernel, jax.random.fold_in(key, number))
            if self.spec.dropout:
                arrays[SALT] = np.int32(number << 10) + np.arange(len(ranks), dtype=np.int32)
            for name, array in arrays.items():
                into = trained if name in (A, B, MAGNITUDE) else held
                into[f"{layer.path}/{name}"] = jnp.asarray(array if layer.stacked else array[0])
        return _nested(trained), {**_nested(frozen), _HELD: _nested(held)}

    def drawn(self, trained):
        return trained

    def apply(self, trained, frozen, tokens, t, *, adapter_keys=None, **conditions):
        """As `Adapter.apply`.

        Args:
          adapter_keys: one PRNG key per sample [B], of the dropout; None drops nothing.
        """
        layers = _flat(trained)
        if not isinstance(frozen, Parameters) and _HELD in frozen:
            layers |= _flat(frozen[_HELD])
            frozen = {name: tree for name, tree in frozen.items() if name != _HELD}
        name, params = _beside_kernels(frozen, layers)
        keys = adapter_keys if self.spec.dropout else None
        with nn.intercept_methods(_Products(name, keys, self.spec.dropout)):
            return self.model(params, tokens, t, **conditions)

    def teacher(self, frozen) -> Apply:
        """The model without its adapter, of the frozen half, called as (tokens, t, **conditions)."""
        base = {name: tree for name, tree in frozen.items() if name != _HELD}

        def apply(tokens, t, *, adapter_keys=None, **conditions):
            return self.model(base, tokens, t, **conditions)

        return apply

    def rules(self) -> tuple[Rule, ...]:
        return (
            (rf"{A}$", (("fsdp",), WHOLE)),
            (rf"{B}$", (WHOLE, ("fsdp",))),
            (rf"({MAGNITUDE}|{SCALE}|{IS_DORA}|{SALT})$", (WHOLE,)),
        )


def _begin(layer: Layer, ranks: np.ndarray, alphas, spec: LoraSpec, kernel, key) -> dict[str, Any]:
    """What a layer's adapter starts with, each array with a leading axis of blocks.

    Blocks of lower rank than others of their stack have zeros beyond it, whose gradients are zero.
    """
    most = int(ranks.max())
    shape = (len(ranks), layer.inputs, most)
    if spec.init == "gaussian":
        values = jax.random.normal(key, shape) / np.maximum(ranks, 1)[:, None, None]
    else:
        values = jax.random.uniform(key, shape, minval=-1, maxval=1) / math.sqrt(layer.inputs)
    real = np.arange(most) < ranks[:, None, None]
    pairs = zip(ranks.tolist(), alphas, strict=True)
    scales = [scaling(rank, alpha, spec.rslora) if rank else 0.0 for rank, alpha in pairs]
    arrays = {
        A: jnp.where(real, values, 0.0).astype(jnp.float32),
        B: jnp.zeros((len(ranks), most, layer.outputs), jnp.float32),
        SCALE: np.array(scales, np.float32),
    }
    if spec.dora:
        lengths = column_norm(kernel.astype(jnp.float32))
        arrays |= {MAGNITUDE: lengths if layer.stacked else lengths[None], IS_DORA: (ranks > 0).astype(np.float32)}
    return arrays


def column_norm(kernel):
    """‖·‖ of each output's weights f32[..., inputs, outputs]: f32[..., outputs]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=-2))


def _beside_kernels(params: Params | Parameters, layers: dict[str, Any]) -> tuple[str, Params | Parameters]:
    """The model's parameters with each adapted module's layers among its own, and the name that they have there.

    Adapters that are laid over this one find theirs by another name.
    """
    if isinstance(params, Parameters):
        name, frozen = _beside_kernels(params.frozen, layers)
        return name, params._replace(frozen=frozen)
    flat = _flat(params)
    taken = {found[0] for path in flat if (found := re.search(r"\blora_\d+\b", path))}
    name = f"lora_{len(taken)}"
    return name, _nested(flat | {_inside(path, name, flat): leaf for path, leaf in layers.items()})


def _inside(path: str, name: str, flat: dict[str, Any]) -> str:
    """blocks_0/attn/qkv/q/lora_a to blocks_0/attn/qkv/NAME/q/lora_a."""
    parts = path.split("/")
    at = next((i for i in (len(parts) - 1, len(parts) - 2) if "/".join([*parts[:i], "kernel"]) in flat), None)
    if at is None:
        raise ValueError(f"{path} is no layer's of the model")
    return "/".join([*parts[:at], name, *parts[at:]])


class _Products:
    """Adds the low-rank products to what Dense layers give, where they have any.

    Args:
      name: under which they find theirs.
      keys: of the dropout [B]; None drops nothing.
    """

    def __init__(self, name: str, keys: jax.Array | None, dropout: float):
        self._name, self._keys, self._dropout = name, keys, dropout

    def __call__(self, call, args, kwargs, context):
        outputs, module = call(*args, **kwargs), context.module
        is_layer = isinstance(module, nn.Dense | HeadsDense) and context.method_name == "__call__"
        if not (is_layer and module.has_variable("params", self._name)):
            return outputs
        arrays = module.get_variable("params", self._name)
        kernel, bias = (module.get_variable("params", name) for name in ("kernel", "bias"))
        x = args[0].astype(module.dtype)
        if isinstance(module, nn.Dense):
            return self._adapted(outputs, x, arrays, kernel, bias)
        names = part_names(module.parts)
        kernels, biases = (jnp.split(array, module.parts, axis=-1) for array in (kernel, bias))
        return [
            self._adapted(output, x, arrays[name], *own) if name in arrays else output
            for name, output, *own in zip(names, outputs, kernels, biases, strict=True)
        ]

    def _adapted(self, output, x, arrays, kernel, bias):
        """s·B·A·x more than x·W; of DoRA, times ‖column wanted‖/‖column‖. x, output: [B, ..., features]."""
        dropped = x if self._keys is None else self._drop(x, arrays[SALT])
        product = dropped @ arrays[A].astype(x.dtype) @ (arrays[SCALE] * arrays[B]).astype(x.dtype)
        if MAGNITUDE not in arrays:
            return output + product
        ratio = magnitude_ratio(arrays, kernel)
        if self._keys is None:
            weighted = output - bias.astype(output.dtype)
        else:
            weighted = dropped @ kernel.astype(x.dtype)
        added = (ratio - 1) * weighted.astype(jnp.float32) + ratio * product.astype(jnp.float32)
        return (output.astype(jnp.float32) + added).astype(output.dtype)

    def _drop(self, x, salt):
        kept = 1 - self._dropout

        def drop(key, row):
            return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, salt), kept, row.shape), row / kept, 0)

        return jax.vmap(drop)(self._keys, x)


def magnitude_ratio(arrays: dict[str, Any], kernel):
    """f32[outputs]: what DoRA multiplies the columns of W + s·B·A by, of one layer of one block; 1 where it is none.

    The norm is of W and this adapter's product, whatever other adapters there are, and constant in the gradient.
    """
    whole = kernel.astype(jnp.float32) + arrays[SCALE] * (arrays[A] @ arrays[B])
    norm = jax.lax.stop_gradient(column_norm(whole))
    # Columns of zeros have no direction to be scaled.
    return jnp.where((arrays[IS_DORA] > 0) & (norm > 0), arrays[MAGNITUDE] / jnp.where(norm > 0, norm, 1.0), 1.0)


def _flat(tree: Params) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.unflatten_dict(flat, sep="/")
