"""PyTorch parameter names of PixArt and DiT to ours: a table of rules, strict in both directions. numpy only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from pixart_jax.errors import InputError


def _transpose(weight):
    return weight.T


def _patch_kernel(weight):
    """Patch convolution [D, C, p, p] to a Dense kernel [p·p·C, D] over (row, column, channel) patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _depthwise_kernel(weight):
    """Depthwise r×r convolution [D, 1, r, r] to [r·r, D]."""
    return weight.reshape(weight.shape[0], -1).T


def _copy(array):
    return array


# (PyTorch name, our path, how the array changes), after the block's prefix where there is one.
_Rule = tuple[str, str, Callable[[np.ndarray], np.ndarray]]


def _linear(source: str, target: str) -> list[_Rule]:
    return [(rf"{source}\.weight", f"{target}/kernel", _transpose), (rf"{source}\.bias", f"{target}/bias", _copy)]


def _norm(source: str, target: str) -> list[_Rule]:
    return [(rf"{source}\.weight", f"{target}/scale", _copy), (rf"{source}\.bias", f"{target}/bias", _copy)]


BLOCK_RULES: list[_Rule] = [
    ("scale_shift_table", "scale_shift_table", _copy),
    *_linear(r"adaLN_modulation\.1", "adaLN_modulation"),
    *_linear(r"(attn|cross_attn)\.(qkv|q_linear|kv_linear|proj)", r"\1/\2"),
    *_linear(r"mlp\.(fc1|fc2)", r"mlp/\1"),
    *_norm(r"attn\.(norm|q_norm|k_norm)", r"attn/\1"),
    (r"attn\.sr\.weight", "attn/sr_kernel", _depthwise_kernel),
    (r"attn\.sr\.bias", "attn/sr_bias", _copy),
]

MODEL_RULES: list[_Rule] = [
    (r"x_embedder\.proj\.weight", "x_embedder/kernel", _patch_kernel),
    (r"x_embedder\.proj\.bias", "x_embedder/bias", _copy),
    *_linear(r"(t|csize|ar)_embedder\.mlp\.(0|2)", r"\1_embedder/mlp_\2"),
    *_linear(r"t_block\.1", "t_block"),
    *_linear(r"y_embedder\.y_proj\.(fc1|fc2)", r"y_embedder/y_proj_\1"),
    (r"y_embedder\.y_embedding", "y_embedder/y_embedding", _copy),
    (r"y_embedder\.embedding_table\.weight", "y_embedder/embedding_table", _copy),
    (r"final_layer\.scale_shift_table", "final_layer/scale_shift_table", _copy),
    *_linear(r"final_layer\.linear", "final_layer/linear"),
    *_linear(r"final_layer\.adaLN_modulation\.1", "final_layer/adaLN_modulation"),
]

# A table that the model computes from the positions.
DROPPED = {"pos_embed"}


def _apply(rules: list[_Rule], name: str) -> tuple[str, Callable] | None:
    for pattern, target, transform in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(target), transform
    return None


def convert_pixart(
    state_dict: Mapping[str, np.ndarray], segments: list[tuple[int, int, int]], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our parameters from a reference state dict of a PixArt or a DiT.

    Args:
      state_dict: PyTorch names to arrays.
      segments: `PixArt.segments()`: (first block, number of blocks, kv ratio) of each stack.
      expected: '/'-joined path to shape of each parameter of the model.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: lists every source key that no rule or parameter takes, every parameter left empty, and every wrong
      shape.
    """
    params: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    unused = []
    for name, array in state_dict.items():
        if name in DROPPED:
            continue
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        rule = _apply(BLOCK_RULES, block[2]) if block else _apply(MODEL_RULES, name)
        if rule is None:
            unused.append(name)
            continue
        target, transform = rule
        array = transform(np.asarray(array, np.float32))
        if not block:
            params[target] = array
            continue
        index = int(block[1])
        first = next((first for first, length, _ in segments if first <= index < first + length), None)
        if first is None:
            unused.append(name)
        else:
            stacks.setdefault(f"blocks_{first}/{target}", {})[index] = array
    lengths = {f"blocks_{first}": length for first, length, _ in segments}
    incomplete = []
    for target, by_index in stacks.items():
        if len(by_index) < lengths[target.split("/")[0]]:
            incomplete.append(f"{target} (only of blocks {sorted(by_index)})")
        else:
            params[target] = np.stack([by_index[i] for i in sorted(by_index)])
    problems = [f"no parameter takes: {name}" for name in unused]
    problems += [f"no parameter takes: {path} {params[path].shape}" for path in sorted(params.keys() - expected.keys())]
    problems += [f"not filled: {path} {expected[path]}" for path in sorted(expected.keys() - params.keys())]
    problems += [f"incomplete: {path}" for path in incomplete]
    problems += [
        f"wrong shape: {path} is {params[path].shape}, the model has {tuple(expected[path])}"
        for path in sorted(params.keys() & expected.keys())
        if params[path].shape != tuple(expected[path])
    ]
    if problems:
        raise InputError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))
    return params
