"""What trainers wrap weights into: dicts around a state dict, and prefixes before its names."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from typing import Any

from pixart_jax.errors import InputError

# (the trained weights, their average, which of the two the format's own tools load).
_SETS = (
    ("state_dict", "state_dict_ema", "state_dict"),
    ("model", "ema", "ema"),
    ("model_state_dict", "ema_state_dict", "model_state_dict"),
    ("model_state_dict", "ema_model_state_dict", "model_state_dict"),
    # DeepSpeed's.
    ("module", "ema", "module"),
)
# A wrapper in a wrapper in a wrapper: a pickle may also hold itself.
_DEPTH = 3
# What a whole pipeline in one file holds beside the transformer, by the first part of its names.
_BESIDE = (
    "first_stage_model", "vae", "cond_stage_model", "text_encoder", "text_encoders", "conditioner", "model_sampling",
)  # fmt: skip


def unwrap(checkpoint: Any, path: pathlib.Path, ema: bool | None) -> tuple[dict[Any, Any], str]:
    """The state dict that a PyTorch file holds, and which of several sets it is, as the file calls it, or "".

    Args:
      ema: see `sources.open_source`.

    Raises:
      InputError: there is none, or none of the kind that `ema` asks for.
    """
    taken = ""
    for _ in range(_DEPTH):
        found = next((names for names in _SETS if isinstance(checkpoint, dict) and _holds(checkpoint, names)), None)
        if found is None:
            break
        raw, averaged, default = found
        weights = {None: default, True: averaged, False: raw}[ema]
        if weights not in checkpoint and (ema is None or taken):
            weights = raw if raw in checkpoint else averaged
        if not isinstance(checkpoint.get(weights), dict):
            raise InputError(f"{path} has no {weights}; leave out --ema, --no-ema and config.init.weights")
        checkpoint, taken = checkpoint[weights], f"{taken}.{weights}".lstrip(".")
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise InputError(f"{path} holds no dict of tensors")
    return checkpoint, taken


def _holds(checkpoint: dict[Any, Any], names: tuple[str, str, str]) -> bool:
    raw, averaged, _ = names
    return isinstance(checkpoint.get(raw, checkpoint.get(averaged)), dict)


def find_prefix(names: Iterable[str], markers: Iterable[str], path: pathlib.Path) -> tuple[str, list[str]]:
    """What stands before all names of a model, and the names of other models beside it.

    Args:
      markers: patterns of names that models have, each an alternative.

    Returns:
      The prefix, "" where there is none; and the names that are left out because another part of a pipeline has them.

    Raises:
      InputError: names that are no other part's lack the prefix, or there are models under several.
    """
    names = list(names)
    pattern = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{'|'.join(markers)})")
    found = {match["prefix"] for name in names if (match := pattern.fullmatch(name))}
    if not found or "" in found:
        return "", []
    if len(found) > 1:
        raise InputError(f"{path} holds several models, under {', '.join(sorted(found))}; save the one alone")
    prefix = found.pop()
    others = [name for name in names if not name.startswith(prefix)]
    if odd := [name for name in others if name.split(".")[0] not in _BESIDE]:
        raise InputError(
            f"{path}: the model's names begin with {prefix}, but not all in the file do: {', '.join(odd[:4])}; save "
            "the model's state_dict alone"
        )
    return prefix, others
