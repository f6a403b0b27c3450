"""Adapters between diffusers' layers and our stacks of them, and merged into the weights that they change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pixart_jax.adapters.layers import Layer, Shape, layers_of
from pixart_jax.adapters.lora import IS_DORA, MAGNITUDE, SCALE, A, B
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.formats.lora import LoraLayer, LoraWeights
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from pixart_jax.samplers import guidance_of


def adapter_arrays(lora: LoraWeights, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """What `adapters.lora.Lora.apply` takes as its trained half, by '/'-joined path.

    Args:
      shapes: '/'-joined path to shape of each parameter of the model.

    Raises:
      InputError: it is another model's; lists the layers, with both shapes.
    """
    layers = layers_of(shapes)
    _check_fit(lora, layers)
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        found = [lora.layers.get(name) for name in layer.names]
        if any(found):
            stacked = _stack(layer, found, [lora.scale(name) if name in lora.layers else 0.0 for name in layer.names])
            arrays |= {f"{layer.path}/{name}": array if layer.stacked else array[0] for name, array in stacked.items()}
    return arrays


def _check_fit(lora: LoraWeights, layers: Iterable[Layer]) -> None:
    wanted = {name: (layer.outputs, layer.inputs) for layer in layers for name in layer.names}
    problems = [
        f"{name}: the adapter's is {found}, the model has {wanted.get(name, 'no such layer')}"
        for name, layer in lora.layers.items()
        if (found := (layer.b.shape[1], layer.a.shape[0])) != wanted.get(name)
    ]
    if problems:
        raise InputError(
            f"{lora.path} is an adapter of another model; (outputs, inputs) of its layers:\n  " + "\n  ".join(problems)
        )


def _stack(layer: Layer, found: Sequence[LoraLayer | None], scales: Sequence[float]) -> dict[str, np.ndarray]:
    """Arrays with a leading axis of blocks; ranks below the highest, and blocks without, are filled up with zeros."""
    count, most = len(found), max(own.rank for own in found if own)
    a = np.zeros((count, layer.inputs, most), np.float32)
    b = np.zeros((count, most, layer.outputs), np.float32)
    magnitude, is_dora = np.zeros((count, layer.outputs), np.float32), np.zeros(count, np.float32)
    for i, own in enumerate(found):
        if own is None:
            continue
        a[i, :, : own.rank], b[i, : own.rank] = own.a, own.b
        if own.magnitude is not None:
            magnitude[i], is_dora[i] = own.magnitude, 1
    arrays = {A: a, B: b, SCALE: np.array(scales, np.float32)}
    return arrays | ({MAGNITUDE: magnitude, IS_DORA: is_dora} if is_dora.any() else {})


def merge(weights: ModelWeights, loras: Sequence[tuple[LoraWeights, float]]) -> ModelWeights:
    """A model with adapters in its weights, one after the other.

    Args:
      loras: adapters, each with what its scales are multiplied by. One that was distilled to few steps says how the
        model is drawn with.

    Raises:
      InputError: one of them is of another model; or, when an array is read, float32 cannot hold it with them.
    """
    if not loras:
        return weights
    layers = layers_of(parameter_shapes(weights.stored.model))
    for lora, _ in loras:
        _check_fit(lora, layers)
    by_path: dict[str, list[Layer]] = {}
    for layer in layers:
        by_path.setdefault(f"{layer.module}/kernel", []).append(layer)

    def read(path: str) -> np.ndarray:
        array = weights.read(path)
        changed = [
            layer for layer in by_path.get(path, ()) if any(set(layer.names) & lora.layers.keys() for lora, _ in loras)
        ]
        if not changed:
            return array
        array = np.array(array, np.float32)
        for layer in changed:
            blocks = layer.columns(array) if layer.stacked else layer.columns(array)[None]
            for block, name in zip(blocks, layer.names, strict=True):
                base = block.copy()
                for lora, strength in loras:
                    if name in lora.layers:
                        _merge_into(block, base, lora.layers[name], strength * lora.scale(name))
        if not np.isfinite(array).all():
            names = " and ".join(f"{lora.path}:{strength:g}" for lora, strength in loras)
            raise InputError(f"{path} is too large for float32 with {names} in it; take a smaller scale")
        return array

    added = " + ".join(
        [weights.stored.provenance.get("source", "?"), *(f"{lora.path.name}:{by:g}" for lora, by in loras)]
    )
    stored = dataclasses.replace(weights.stored, provenance=weights.stored.provenance | {"source": added})
    for few in (lora.few_steps for lora, _ in loras):
        if few:
            drawn = {**few._asdict(), "guidance": guidance_of(few.sampler)}
            stored = dataclasses.replace(stored, **drawn)
    return dataclasses.replace(weights, stored=stored, read=read)


def _merge_into(kernel: np.ndarray, base: np.ndarray, layer: LoraLayer, scale: float) -> None:
    """Changes a kernel f32[inputs, outputs] in place; `base` is what it was before any adapter, as DoRA's norm is of
    that and one adapter, see `adapters.lora.magnitude_ratio`."""
    with np.errstate(over="ignore", invalid="ignore"):  # The caller looks for it.
        added = np.float32(scale) * (layer.a @ layer.b)
        kernel += added
    if layer.magnitude is not None:
        norm = np.sqrt(np.square((base + added).astype(np.float64)).sum(0))
        kernel *= np.divide(layer.magnitude, norm, out=np.ones_like(norm), where=norm > 0).astype(np.float32)


def lora_of_arrays(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, Shape],
    told: Callable[[str], tuple[int, float]],
    whose: LoraWeights,
) -> LoraWeights:
    """The adapter that a run has trained.

    Args:
      arrays: '/'-joined path to array of the trained half.
      shapes: as in `adapter_arrays`.
      told: rank and alpha of a layer by diffusers' name; rank 0 where it is not adapted.
      whose: gives all but the layers.
    """
    layers = {}
    for layer in layers_of(shapes):
        if f"{layer.path}/{A}" not in arrays:
            continue
        a, b, magnitude = (arrays.get(f"{layer.path}/{name}") for name in (A, B, MAGNITUDE))
        assert a is not None and b is not None
        for i, name in enumerate(layer.names):
            rank, alpha = told(name)
            if rank:
                at = i if layer.stacked else slice(None)
                own = None if magnitude is None else magnitude[at]
                layers[name] = LoraLayer(a[at][:, :rank], b[at][:rank], alpha, own)
    return dataclasses.replace(whose, layers=layers)
