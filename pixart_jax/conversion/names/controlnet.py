"""A reference ControlNet checkpoint to ours and back: the base model's names and the copies', strict in both
directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from pixart_jax.conversion.names.pixart import BLOCK_RULES
from pixart_jax.conversion.names.rules import convert, linear, revert
from pixart_jax.errors import InputError

T = TypeVar("T")

# Which is also how the two state dicts split.
BASE, CONTROL = "base_model.", "controlnet."

_RULES = linear(r"0\.before_proj", "before_proj")
_COPY_RULES = [
    *((rf"copied_block\.{source}", target, transform) for source, target, transform in BLOCK_RULES),
    *linear("after_proj", "after_proj"),
]
_COPY = r"(\d+)\.(?!before_proj)(.+)"


def split_controlnet(state_dict: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """The base model's state dict, for `convert_pixart`, and the ControlNet's, for `convert_controlnet`.

    Args:
      state_dict: PyTorch names to arrays, or to whatever is known of them.

    Raises:
      InputError: lists every key that belongs to neither.
    """
    if unknown := [name for name in state_dict if not name.startswith((BASE, CONTROL))]:
        raise InputError(
            f"not a ControlNet checkpoint: these keys begin neither with {BASE} nor with {CONTROL}\n  "
            + "\n  ".join(unknown)
        )
    base, control = (
        {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}
        for prefix in (BASE, CONTROL)
    )
    return base, control


def convert_controlnet(
    state_dict: Mapping[str, np.ndarray], num_copies: int, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Parameters of a `ControlNet` from the second half of `split_controlnet`.

    Args:
      state_dict: PyTorch names, without `controlnet.`, to arrays.
      num_copies: the ControlNet's.
      expected: '/'-joined path to shape of each parameter of the ControlNet.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: as `convert_pixart`.
    """
    return convert(state_dict, _RULES, _COPY, _COPY_RULES, {"copies": range(num_copies)}, expected)


def revert_controlnet(
    paths: Iterable[str], read: Callable[[str], np.ndarray], num_copies: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names, without `controlnet.`, and arrays of the reference's ControlNet.

    Args, returns and errors as `rules.revert`; num_copies as in `convert_controlnet`.
    """
    return revert(paths, read, _RULES, _COPY, _COPY_RULES, {"copies": range(num_copies)})


def count_copies(names: Iterable[str]) -> int:
    """How many blocks are copied, by the second half of `split_controlnet`."""
    indices = (name.split(".")[0] for name in names)
    # A gap in the middle is found when the weights are converted.
    return max((int(index) for index in indices if index.isdigit()), default=-1) + 1
