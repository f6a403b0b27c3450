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
Rule = tuple[str, str, Callable[[np.ndarray], np.ndarray]]


def linear(source: str, target: str) -> list[Rule]:
    return [(rf"{source}\.weight", f"{target}/kernel", _transpose), (rf"{source}\.bias", f"{target}/bias", _copy)]


def _norm(source: str, target: str) -> list[Rule]:
    return [(rf"{source}\.weight", f"{target}/scale", _copy), (rf"{source}\.bias", f"{target}/bias", _copy)]


BLOCK_RULES: list[Rule] = [
    ("scale_shift_table", "scale_shift_table", _copy),
    *linear(r"adaLN_modulation\.1", "adaLN_modulation"),
    *linear(r"(attn|cross_attn)\.(qkv|q_linear|kv_linear|proj)", r"\1/\2"),
    *linear(r"mlp\.(fc1|fc2)", r"mlp/\1"),
    *_norm(r"attn\.(norm|q_norm|k_norm)", r"attn/\1"),
    (r"attn\.sr\.weight", "attn/sr_kernel", _depthwise_kernel),
    (r"attn\.sr\.bias", "attn/sr_bias", _copy),
]

MODEL_RULES: list[Rule] = [
    (r"x_embedder\.proj\.weight", "x_embedder/kernel", _patch_kernel),
    (r"x_embedder\.proj\.bias", "x_embedder/bias", _copy),
    *linear(r"(t|csize|ar)_embedder\.mlp\.(0|2)", r"\1_embedder/mlp_\2"),
    *linear(r"t_block\.1", "t_block"),
    *linear(r"y_embedder\.y_proj\.(fc1|fc2)", r"y_embedder/y_proj_\1"),
    (r"y_embedder\.y_embedding", "y_embedder/y_embedding", _copy),
    (r"y_embedder\.embedding_table\.weight", "y_embedder/embedding_table", _copy),
    (r"final_layer\.scale_shift_table", "final_layer/scale_shift_table", _copy),
    *linear(r"final_layer\.linear", "final_layer/linear"),
    *linear(r"final_layer\.adaLN_modulation\.1", "final_layer/adaLN_modulation"),
]

# A table that the model computes from the positions.
DROPPED = {"pos_embed"}


def _apply(rules: list[Rule], name: str) -> tuple[str, Callable] | None:
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
    stacks = {f"blocks_{first}": range(first, first + length) for first, length, _ in segments}
    kept = {name: array for name, array in state_dict.items() if name not in DROPPED}
    return convert(kept, MODEL_RULES, r"blocks\.(\d+)\.(.+)", BLOCK_RULES, stacks, expected)


def convert(
    state_dict: Mapping[str, np.ndarray],
    rules: list[Rule],
    block_pattern: str,
    block_rules: list[Rule],
    stacks: Mapping[str, range],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """A state dict by tables of rules, with the arrays of equal blocks stacked.

    Args:
      rules: for names outside the blocks.
      block_pattern: matches a name inside a block; its groups are the block's index and the name that `block_rules`
        take.
      stacks: our name of each stack to the indices of its blocks.
      state_dict, expected: as in `convert_pixart`, which also says what is returned and raised.
    """
    params: dict[str, np.ndarray] = {}
    by_index: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    unused = []
    for name, array in state_dict.items():
        block = re.fullmatch(block_pattern, name)
        rule = _apply(block_rules, block[2]) if block else _apply(rules, name)
        stack = next((stack for stack, indices in stacks.items() if block and int(block[1]) in indices), None)
        if rule is None or (block and stack is None):
            unused.append(name)
            continue
        target, transform = rule
        array = transform(np.asarray(array, np.float32))
        if block:
            by_index.setdefault((stack, target), {})[int(block[1])] = array
        else:
            params[target] = array
    unstacked = []
    for (stack, target), arrays in by_index.items():
        if len(arrays) < len(stacks[stack]):
            unstacked.append(f"incomplete: {stack}/{target} is there only for blocks {sorted(arrays)}")
        elif len({array.shape for array in arrays.values()}) > 1:
            shapes = {index: arrays[index].shape for index in sorted(arrays)}
            unstacked.append(f"wrong shape: {stack}/{target} differs between the blocks: {shapes}")
        else:
            params[f"{stack}/{target}"] = np.stack([arrays[i] for i in stacks[stack]])
    problems = [f"no parameter takes: {name}" for name in unused]
    problems += [f"no parameter takes: {path} {params[path].shape}" for path in sorted(params.keys() - expected.keys())]
    problems += [f"not filled: {path} {expected[path]}" for path in sorted(expected.keys() - params.keys())]
    problems += unstacked
    problems += [
        f"wrong shape: {path} is {params[path].shape}, the model has {tuple(expected[path])}"
        for path in sorted(params.keys() & expected.keys())
        if params[path].shape != tuple(expected[path])
    ]
    if problems:
        raise InputError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))
    return params
