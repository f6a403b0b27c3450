"""Our own format: a directory of `conversion.stored`, perhaps with that of `conversion.control` in it."""

from __future__ import annotations

import numpy as np

from pixart_jax.conversion.control import open_control
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.base import NO_HINTS, Format, Hints, ModelWeights, Source
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.stored import StoredModel, StoredParams, read_stored_model
from pixart_jax.errors import InputError


def _describe(source: Source, hints: Hints, fallback: Hints) -> StoredModel:
    if hints != NO_HINTS:
        raise InputError(f"{source.path} says all about its model in model.json; leave the options out")
    return read_stored_model(source.path)


def _load(source: Source, hints: Hints, fallback: Hints) -> ModelWeights:
    stored = _describe(source, hints, fallback)
    params = StoredParams(source.path / "params", stored.model)
    control = open_control(source.path, stored.model)

    def read(path: str) -> np.ndarray:
        array = params[path]
        if not (path == NULL_TEXT and stored.null_text == "missing"):
            check_finite(array, f"{source.path}: {path}")
        return array

    return ModelWeights(stored, list(params), read, control)


ORBAX = Format(
    name="orbax",
    title="a model of ours",
    describe=_describe,
    load=_load,
    file="model.json",
    says_all=True,
    may_be_dit=True,
)
