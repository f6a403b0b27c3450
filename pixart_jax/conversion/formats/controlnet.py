"""A PixArt and its ControlNet in one checkpoint, as the reference's ControlNet training writes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from pixart_jax.conversion.control import convert_control
from pixart_jax.conversion.formats.base import Format, Hints, ModelWeights, Source
from pixart_jax.conversion.formats.reference import PIXART
from pixart_jax.conversion.names.controlnet import BASE, CONTROL, split_controlnet
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.errors import InputError


class Half(Mapping[str, np.ndarray]):
    """The arrays whose names begin with a prefix, by the rest of their names, each read when it is asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str, shapes: Mapping[str, tuple[int, ...]]):
        self._arrays, self._prefix, self.shapes = arrays, prefix, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def _split(source: Source) -> tuple[Source, Mapping[str, np.ndarray]]:
    """The source of the PixArt alone, and the ControlNet's names and arrays.

    Raises:
      InputError: it has arrays of neither, or none of the one or the other.
    """
    try:
        base, control = split_controlnet(source.shapes)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    if not base or not control:
        absent = "ControlNet" if base else "base model"
        raise InputError(f"{source.path} holds a ControlNet's checkpoint without the {absent}; give the whole file")
    base_arrays, control_arrays = Half(source.arrays, BASE, base), Half(source.arrays, CONTROL, control)
    return dataclasses.replace(source, format=PIXART, arrays=base_arrays, shapes=base), control_arrays


def _describe(source: Source, hints: Hints, fallback: Hints) -> StoredModel:
    raise InputError(
        f"{source.path} holds a PixArt together with a ControlNet; names.controlnet.split_controlnet takes them apart, "
        "and the PixArt can be described"
    )


def _load(source: Source, hints: Hints, fallback: Hints) -> ModelWeights:
    base, control_arrays = _split(source)
    weights = PIXART.load(base, hints, fallback)
    provenance = weights.stored.provenance | {"format": CONTROLNET.name}
    return dataclasses.replace(
        weights,
        stored=dataclasses.replace(weights.stored, provenance=provenance),
        control=convert_control(control_arrays, weights.stored.model, source.path),
    )


CONTROLNET = Format(
    name="controlnet",
    title="a PixArt with a ControlNet",
    describe=_describe,
    load=_load,
    # base_model.model. is PEFT's.
    array=r"(base_model\.(?!model\.)|controlnet\.\d).+",
    without_control=lambda source: _split(source)[0],
)
