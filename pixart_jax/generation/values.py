"""What callers mean by a value, in the form that drawing uses; an InputError where that is not clear."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pixart_jax.errors import InputError


def captions(name: str, value: Any) -> list[str]:
    """A caption, or any number above 0 of them.

    Raises:
      InputError: none, something that is no text, or text that no file can hold; says which.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes | dict | set):
        raise InputError(f"{name} must be a caption or a list of captions, not {value!r:.80}")
    found = [*value]
    if not found:
        raise InputError(f"{name} must be a list of at least one caption, not an empty one")
    for index, caption in enumerate(found):
        if not isinstance(caption, str):
            raise InputError(f"{name}[{index}] must be a caption, not {caption!r:.80}")
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name}[{index}] holds bytes that are no UTF-8: {caption!a:.80}") from error
    return [str(caption) for caption in found]


def whole_number(name: str, value: Any, low: int) -> int:
    """2, 2.0, or numpy's or JAX's of either, as an int of at least `low`."""
    value = _scalar(value)
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r}: must be a whole number") from None
    if isinstance(value, bool):
        raise InputError(f"{name} = {value!r}: must be a whole number")
    if number < low:
        raise InputError(f"{name} = {number}: must be at least {low}")
    return number


def real_number(name: str, value: Any) -> float:
    """A number, numpy's and JAX's too, that float32 can hold."""
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} = {value!r:.80}: must be a number")
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{name} = {value}: must be a finite number that float32 can hold")
    return float(value)


def interval(name: str, value: Any) -> tuple[float, float]:
    """A pair of timesteps of the model, the lower one first."""
    pair = [*value] if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes) else []
    if len(pair) != 2:
        raise InputError(f"{name} = {value!r:.80}: must be two timesteps, such as (200, 800)")
    low, high = (real_number(name, end) for end in pair)
    if not 0 <= low <= high <= 1000:
        raise InputError(f"{name} = {low:g} to {high:g}: must lie in [0, 1000], the lower timestep first")
    return low, high


def finite_array(name: str, value: Any) -> np.ndarray:
    """Real numbers as f32 of any shape, without NaN or infinity."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers: {error}") from error
    # "V" is bfloat16 and its like.
    if array.dtype.kind not in "fiuV":
        raise InputError(f"{name} must be an array of real numbers, not of {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite: {np.count_nonzero(~np.isfinite(array))} numbers are NaN or infinity")
    return array


def _scalar(value: Any) -> Any:
    """The Python number in an array of one."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
