"""Why a picture holds NaN or infinity: looked for when one does, and never before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixart_jax.devices.finite import names, not_finite
from pixart_jax.samplers.steps import FAULTS

# The null caption, which some weights do not have: NaN stands in its place.
_NULL_TEXT = "y_embedding"


def first_fault(found: np.ndarray, params: Any, conditions: Mapping, null: Mapping, guidance_scale: float) -> str:
    """In words, which step and part had NaN or infinity first, and whether weights or conditions brought it along.

    Args:
      found: i32[B, S], what the sampling program found.
      params: of the model, on the devices.
      conditions, null: of both branches, on the host.
    """
    steps = [(int(row.argmax()), int(row[row.argmax()])) for row in found > 0]
    index = min(range(len(found)), key=lambda i: steps[i][0] if steps[i][1] else found.shape[1])
    step = steps[index][0]
    where = FAULTS[found[index, step]] or FAULTS[1]
    begin = f"step {step + 1} of {found.shape[1]}: {where} holds NaN or infinity, which would be drawn black"
    drops = any(np.asarray(branch.get("text_drop", False)).any() for branch in (conditions, null))
    broken = [path for path in not_finite(params) if drops or not path.endswith(_NULL_TEXT)]
    if broken:
        return f"{begin}; the weights hold it: {names(broken)}; take others, or convert them again from a sound file"
    given = [name for branch in (conditions, null) for name in not_finite(dict(branch))]
    if given:
        return f"{begin}; what the model is given holds it: {', '.join(dict.fromkeys(given))}; make the features again"
    return (
        f"{begin}; weights and text are finite, so that the numbers became too large on the way: lower the guidance "
        f"scale ({guidance_scale:g}), or compute in float32"
    )
