"""Weights of any format in, and out to any format, without ever holding the model twice."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pixart_jax.conversion.control import Control, convert_control, open_control, split_source, write_control
from pixart_jax.conversion.describe import NO_HINTS, Hints, describe
from pixart_jax.conversion.names.controlnet import BASE, CONTROL, revert_controlnet
from pixart_jax.conversion.names.diffusers import NULL_TEXT, convert_diffusers, diffusers_config, revert_diffusers
from pixart_jax.conversion.names.pixart import convert_pixart, position_table, revert_pixart
from pixart_jax.conversion.sources import WEIGHTS, Source, load_torch
from pixart_jax.conversion.stored import StoredModel, StoredParams, write_model
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes


@dataclasses.dataclass(frozen=True)
class ModelWeights:
    """A model with its parameters, about to be written.

    Attributes:
      stored: what the model is.
      paths: '/'-joined path of each parameter.
      read: f32 array of a path; call it once for each, because it may let go of what it gives.
      control: the model's ControlNet, or None.
    """

    stored: StoredModel
    paths: list[str]
    read: Callable[[str], np.ndarray]
    control: Control | None = None


def load_weights(
    source: Source,
    hints: Hints = NO_HINTS,
    null_text: np.ndarray | None = None,
    *,
    fallback: Hints = NO_HINTS,
) -> ModelWeights:
    """Our parameters from an opened source.

    Args:
      hints, fallback: see `describe`.
      null_text: f32[max_text_tokens, text_dim], the text encoder's features of the empty caption; takes the place of
        the null caption, whether the source has one or not.

    Raises:
      InputError: as `describe` and `pixart.convert_pixart`; null_text is of another shape; the source is damaged.
    """
    if source.kind == "controlnet":
        base, state_dict = split_source(source)
        weights = load_weights(base, hints, null_text, fallback=fallback)
        provenance = weights.stored.provenance | {"format": source.kind}
        return dataclasses.replace(
            weights,
            stored=dataclasses.replace(weights.stored, provenance=provenance),
            control=convert_control(state_dict, weights.stored.model, source.path),
        )
    stored = describe(source, hints, fallback)
    model = stored.model
    expected = parameter_shapes(model)
    control = None
    read: Callable[[str], np.ndarray]
    if source.kind == "orbax":
        kept, control = StoredParams(source.path / "params", model), open_control(source.path, model)
        paths, read = list(kept), kept.__getitem__
    else:
        try:
            if source.kind == "diffusers":
                params = convert_diffusers(source.arrays, model.segments(), expected)
            elif stored.null_text == "missing":
                without = {path: shape for path, shape in expected.items() if path != NULL_TEXT}
                params = convert_pixart(source.arrays, model.segments(), without)
            else:
                params = convert_pixart(source.arrays, model.segments(), expected)
        except InputError as error:
            raise InputError(f"{source.path}: {error}") from error
        if stored.null_text == "missing":
            # Not zeros: those would make pictures, only worse ones. A NaN reaches every pixel of whoever forgot.
            params[NULL_TEXT] = np.full(expected[NULL_TEXT], np.nan, np.float32)
        paths, read = list(params), params.pop
    if null_text is None:
        return ModelWeights(stored, paths, read, control)
    if stored.null_text == "none":
        raise InputError(f"{source.path}: a class-conditional model has no null caption; leave --null-text out")
    if null_text.shape != expected[NULL_TEXT]:
        raise InputError(
            f"the null caption has shape {null_text.shape}, the model takes {expected[NULL_TEXT]}: the text encoder's "
            "features of the empty caption, padded to as many tokens as captions have"
        )
    return ModelWeights(
        dataclasses.replace(stored, null_text="stored"),
        paths,
        lambda path: null_text if path == NULL_TEXT else read(path),
        control,
    )


def read_null_text(path: pathlib.Path) -> np.ndarray:
    """Features f32[L, text_dim] of the empty caption.

    Args:
      path: a `.npy` of [L, text_dim] or [1, L, text_dim]; or a PyTorch file of such a tensor, alone or under
        `uncond_prompt_embeds`, as in PixArt-Σ's `null_embed_diffusers_300token.pth`.

    Raises:
      InputError: it is neither.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".npy":
        try:
            array = np.load(path)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path} is damaged, or no .npy: {error}") from error
    else:
        found = load_torch(path)
        tensor: Any = found.get("uncond_prompt_embeds") if isinstance(found, dict) else found
        if not hasattr(tensor, "numpy"):
            raise InputError(f"{path} holds neither a tensor nor `uncond_prompt_embeds`")
        array = tensor.float().numpy()
    return np.asarray(array.reshape(array.shape[-2:]) if array.ndim == 3 and len(array) == 1 else array, np.float32)


def write_orbax(target: pathlib.Path, weights: ModelWeights) -> None:
    """A directory of `conversion.stored`, with that of `conversion.control` in it."""
    write_model(target, weights.stored, {path: weights.read(path) for path in weights.paths})
    if weights.control:
        write_control(target, weights.control)


def write_pixart(target: pathlib.Path, weights: ModelWeights) -> None:
    """A PixArt's own checkpoint, {"state_dict": ...}, with its ControlNet, or the flat one of a DiT; of float32.

    Raises:
      InputError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("a .pth can only be written with PyTorch: pip install torch") from error
    stored, model = weights.stored, weights.stored.model
    table = position_table(stored.position_base, stored.position_scale, model.hidden_size)
    state_dict = {"pos_embed": torch.from_numpy(table)}
    paths = _with_null_text(weights)
    for name, array in revert_pixart(paths, weights.read, model.segments(), model.patch_size):
        state_dict[name] = torch.from_numpy(array)
    if control := weights.control:
        state_dict = {f"{BASE}{name}": tensor for name, tensor in state_dict.items()}
        for name, array in revert_controlnet(control.paths, control.read, control.num_copies):
            state_dict[f"{CONTROL}{name}"] = torch.from_numpy(array)
    with target.open("wb") as file:
        try:
            torch.save(state_dict if model.num_classes else {"state_dict": state_dict}, file)
        except RuntimeError as error:
            # All that PyTorch says of a full disk is a number; the file's own error is behind it.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def write_diffusers(target: pathlib.Path, weights: ModelWeights) -> None:
    """A transformer folder that `diffusers.PixArtTransformer2DModel.from_pretrained` opens; of float32.

    Raises:
      InputError: the model has parameters or settings that diffusers does not.
    """
    import safetensors.numpy

    if weights.control:
        raise InputError("diffusers has no ControlNet for PixArt; this model's can only be written with --to pixart")
    model = weights.stored.model
    arrays = revert_diffusers(weights.paths, weights.read, model.segments(), model.patch_size)
    config = diffusers_config(model, weights.stored.position_base, weights.stored.position_scale)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.numpy.save_file(dict(arrays), target / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def _with_null_text(weights: ModelWeights) -> Iterable[str]:
    """The parameters that are there: all, or all but the null caption."""
    missing = weights.stored.null_text == "missing"
    return [path for path in weights.paths if not (missing and path == NULL_TEXT)]
