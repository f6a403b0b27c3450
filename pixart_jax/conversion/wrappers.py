"""What trainers wrap weights into: dicts around a state dict, and prefixes before its names."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from typing import Any

from pixart_jax.errors import InputError

# (the trained weights, names that their average has, whether the format's own tools load the average).
_SETS = (
    ("state_dict", ("state_dict_ema",), False),
    ("model", ("ema",), True),
    ("model_state_dict", ("ema_state_dict", "ema_model_state_dict", "model_ema_state_dict"), False),
    # DeepSpeed's.
    ("module", ("ema", "module_ema"), False),
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
        found = _sets(checkpoint)
        if found is None:
            break
        raw, averaged, prefers_average = found
        weights = averaged if ema or (ema is None and prefers_average) else raw
        if weights not in checkpoint and (ema is None or taken):
            weights = raw if weights == averaged else averaged
        if not isinstance(checkpoint.get(weights), dict):
            raise InputError(f"{path} has no {weights}; leave out --ema, --no-ema and config.init.weights")
        checkpoint, taken = checkpoint[weights], f"{taken}.{weights}".lstrip(".")
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise InputError(f"{path} holds no dict of tensors")
    return checkpoint, taken


def _sets(checkpoint: Any) -> tuple[str, str, bool] | None:
    """The entry of _SETS, with the average's one name, that a dict has; None where it has none, as a state dict."""
    if isinstance(checkpoint, dict):
        for raw, names, prefers_average in _SETS:
            averaged = next((name for name in names if name in checkpoint), names[0])
            if isinstance(checkpoint.get(raw, checkpoint.get(averaged)), dict):
                return raw, averaged, prefers_average
    return None


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
