"""A ControlNet's names to ours and back, strict in both directions: those of PixArt's own checkpoints, where the base
model's stand beside them, and those of diffusers' research project (examples/research_projects/pixart)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from pixart_jax.conversion.names import diffusers, pixart
from pixart_jax.conversion.names.rules import Rule, convert, linear, revert
from pixart_jax.errors import InputError

T = TypeVar("T")

# Which is also how the two state dicts split.
BASE, CONTROL = "base_model.", "controlnet."

# What stands before the names of the research project.
RESEARCH = "controlnet_blocks."

_RULES = linear(r"0\.before_proj", "before_proj")


def _copy_rules(block: str, rules: Sequence[Rule]) -> list[Rule]:
    """Of a copy, whose block has that name and those rules."""
    copied: list[Rule] = [(rf"{block}\.{source}", target, layout) for source, target, layout in rules]
    return [*copied, *linear("after_proj", "after_proj")]


_COPY_RULES = _copy_rules("copied_block", pixart.BLOCK_RULES)
_RESEARCH_RULES = _copy_rules("transformer_block", diffusers.BLOCK_RULES)
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
    state_dict: Mapping[str, np.ndarray],
    num_copies: int,
    expected: Mapping[str, tuple[int, ...]],
    *,
    research: bool = False,
) -> dict[str, np.ndarray]:
    """Parameters of a `ControlNet` from the second half of `split_controlnet`.

    Args:
      state_dict: PyTorch names, without `controlnet.`, to arrays.
      num_copies: the ControlNet's.
      expected: '/'-joined path to shape of each parameter of the ControlNet.
      research: the names are the research project's, without `controlnet_blocks.`.

    Returns:
      '/'-joined path to f32 array.

    Raises:
      InputError: as `convert_pixart`.
    """
    rules = _RESEARCH_RULES if research else _COPY_RULES
    return convert(state_dict, _RULES, _COPY, rules, _stacks(expected, num_copies), expected)


def revert_controlnet(
    paths: Iterable[str], read: Callable[[str], np.ndarray], num_copies: int, *, research: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Names, without what stands before all of them, and arrays of the reference's ControlNet.

    Args, returns and errors as `rules.revert`; num_copies and research as in `convert_controlnet`.
    """
    paths = list(paths)
    rules = _RESEARCH_RULES if research else _COPY_RULES
    return revert(paths, read, _RULES, _COPY, rules, _stacks(paths, num_copies))


def _stacks(paths: Iterable[str], num_copies: int) -> dict[str, range]:
    """Our name of each stack of copies to their indices, see `models.controlnet.stack_name`."""
    names = {path.split("/")[0] for path in paths if path.startswith("copies")}
    firsts = {int(name.partition("_")[2] or 0): name for name in names}
    ends = [*sorted(firsts)[1:], num_copies]
    return {firsts[first]: range(first, end) for first, end in zip(sorted(firsts), ends, strict=True)}


def count_copies(names: Iterable[str]) -> int:
    """How many blocks are copied, by names as `convert_controlnet` takes them."""
    indices = (name.split(".")[0] for name in names)
    # A gap in the middle is found when the weights are converted.
    return max((int(index) for index in indices if index.isdigit()), default=-1) + 1
