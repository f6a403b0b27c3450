"""Hugging Face transformers' T5 checkpoints to `T5Encoder` and back, strict in both directions. numpy only.

Takes encoders (T5EncoderModel) and whole models (T5ForConditionalGeneration) alike. Of a whole model the decoder and
the output head are left out on purpose: PixArt reads the encoder's last hidden states and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from pixart_jax.conversion.names.rules import COPY, TRANSPOSE, Rule, convert, other_names, revert
from pixart_jax.errors import InputError

_DROPPED = r"decoder\..+|lm_head\.weight"
# Two names of one array; files hold either or both, and those of transformers 5 the first.
_TABLE, _TABLE_AGAIN = "shared.weight", "encoder.embed_tokens.weight"
# Block 0 holds the position biases of all.
_BIAS = r"layer\.0\.SelfAttention\.relative_attention_bias\.weight"

_RULES: list[Rule] = [
    (r"shared\.weight", "shared/embedding_table", COPY),
    *other_names([(r"encoder\.embed_tokens\.weight", "shared/embedding_table", COPY)]),
    (rf"encoder\.block\.0\.{_BIAS}", "relative_attention_bias/embedding_table", COPY),
    (r"encoder\.final_layer_norm\.weight", "final_layer_norm/scale", COPY),
]
_BLOCK = rf"encoder\.block\.(\d+)\.(?!{_BIAS})(.+)"
_BLOCK_RULES: list[Rule] = [
    (r"layer\.0\.layer_norm\.weight", "SelfAttention/layer_norm/scale", COPY),
    (r"layer\.0\.SelfAttention\.([qkvo])\.weight", r"SelfAttention/\1/kernel", TRANSPOSE),
    (r"layer\.1\.layer_norm\.weight", "DenseReluDense/layer_norm/scale", COPY),
    (r"layer\.1\.DenseReluDense\.(wi_0|wi_1|wo)\.weight", r"DenseReluDense/\1/kernel", TRANSPOSE),
]


def convert_t5(
    state_dict: Mapping[str, np.ndarray],
    num_layers: int,
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtype: np.dtype | type = np.float32,
) -> dict[str, np.ndarray]:
    """Parameters of a `T5Encoder`.

    Args:
      state_dict: PyTorch names to arrays, of T5EncoderModel or T5ForConditionalGeneration. What is left out is never
        read, and the rest one array at a time, as `pixart_jax.conversion.names.rules.convert` does.
      num_layers: the encoder's.
      expected: '/'-joined path to shape of each parameter of the encoder.
      dtype: of our parameters: bfloat16 is exact where the source has it.

    Returns:
      '/'-joined path to array of `dtype`.

    Raises:
      InputError: the two names of the embedding table hold different arrays; else as `convert`.
    """
    dropped = {name for name in state_dict if re.fullmatch(_DROPPED, name)}
    both = _TABLE in state_dict and _TABLE_AGAIN in state_dict
    if both:
        dropped.add(_TABLE_AGAIN)
    params = convert(
        state_dict, _RULES, _BLOCK, _BLOCK_RULES, _stacks(num_layers), expected, dropped=dropped, dtype=dtype
    )
    if both and not _equal(params["shared/embedding_table"], state_dict):
        raise InputError(
            f"{_TABLE} and {_TABLE_AGAIN} differ, but are one array in T5: the checkpoint is damaged, or another "
            "model's; download it again"
        )
    return params


def _equal(table: np.ndarray, state_dict: Mapping[str, np.ndarray]) -> bool:
    shapes = getattr(state_dict, "shapes", None)
    if shapes is not None and tuple(shapes[_TABLE_AGAIN]) != table.shape:
        return False
    return np.array_equal(table, state_dict[_TABLE_AGAIN].astype(table.dtype, copy=False))


def revert_t5(
    paths: Iterable[str], read: Callable[[str], np.ndarray], num_layers: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a T5EncoderModel, as transformers writes them.

    Args, returns and errors as `rules.revert`; num_layers as in `convert_t5`.
    """
    return revert(paths, read, _RULES, _BLOCK, _BLOCK_RULES, _stacks(num_layers))


def _stacks(num_layers: int) -> dict[str, range]:
    return {"block": range(num_layers)}
