"""Linear layers of blocks in eight bits: half of bfloat16's memory, and twice its products where the hardware can.

A kernel is int8 with a float32 scale for each output, its largest weight over 127. Where activations are int8 too, each
token has a scale of its own, found as it comes (LLM.int8's vector-wise form, Dettmers et al. 2022, arXiv:2208.07339);
otherwise the weights become the activations' dtype inside the product. What is outside the blocks stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.layers import HeadsDense

# Beside an int8 kernel: f32[..., outputs], what its columns are multiplied by.
SCALE = "kernel_scale"

# "weights": products in the activations' dtype. "products": of int8 with int8, into int32.
MODES = ("weights", "products")

_KERNEL = re.compile(r"(blocks_\d+|block)/.+/kernel$")


def mode_for(device: jax.Device) -> str:
    """What is fastest on a device: "products" where it multiplies int8 at twice the rate of bfloat16, by its vendor:
    TPU from v5e on, NVIDIA from compute capability 8.0 on."""
    if device.platform == "tpu":
        return "products" if re.search(r"v5|v6|v[7-9]", device.device_kind) else "weights"
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return "products" if device.platform == "gpu" and major.isdigit() and int(major) >= 8 else "weights"


def is_eight_bit(path: str) -> bool:
    """Whether the array of a '/'-joined path, of PixArt's or T5's parameters, becomes int8."""
    return _KERNEL.match(path) is not None


def quantize(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel [..., inputs, outputs] as int8, and the scales f32[..., outputs] of its columns."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.abs(kernel).max(-2) / 127.0
    safe = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(kernel / safe[..., None, :]).astype(jnp.int8), scale


_quantize = jax.jit(quantize)


def quantize_flat(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Kernels by '/'-joined path, in int8 and with their scales beside them, one after the other."""
    found = {}
    for path, array in arrays.items():
        found[path], found[f"{path.removesuffix('kernel')}{SCALE}"] = _quantize(array)
    return found


def quantize_tree(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with their blocks' kernels in int8; whatever else there is stays as it is."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    flat |= quantize_flat({path: leaf for path, leaf in flat.items() if is_eight_bit(path)})
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def in_eight_bits(call: Callable, mode: str) -> Callable:
    """A function that applies modules, for parameters of which some are `quantize_tree`'s."""

    def product(inner, args, kwargs, context):
        module = context.module
        is_layer = isinstance(module, nn.Dense | HeadsDense) and context.method_name == "__call__"
        if not (is_layer and module.has_variable("params", SCALE)):
            return inner(*args, **kwargs)
        kernel, scale = (module.get_variable("params", name) for name in ("kernel", SCALE))
        x = args[0].astype(module.dtype)
        out = (_int8_product if mode == "products" else _mixed_product)(x, kernel, scale)
        if module.has_variable("params", "bias"):
            out = out + module.get_variable("params", "bias").astype(out.dtype)
        return jnp.split(out, module.parts, axis=-1) if isinstance(module, HeadsDense) else out

    def called(*args, **kwargs):
        with nn.intercept_methods(product):
            return call(*args, **kwargs)

    return called


def _mixed_product(x, kernel, scale):
    """x [..., inputs] times a kernel that is made x's dtype on the way."""
    return (x @ kernel.astype(x.dtype)) * scale.astype(x.dtype)


def _int8_product(x, kernel, scale):
    """x [..., inputs], each of its rows in int8, times an int8 kernel."""
    largest = jnp.abs(x).max(-1, keepdims=True).astype(jnp.float32)
    safe = jnp.where(largest > 0, largest, 1.0)
    rows = jnp.round(x.astype(jnp.float32) * (127.0 / safe)).astype(jnp.int8)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    product = jax.lax.dot_general(rows, kernel, axes, preferred_element_type=jnp.int32)
    return (product.astype(jnp.float32) * (largest / 127.0) * scale).astype(x.dtype)
