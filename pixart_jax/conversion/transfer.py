"""Weights of any format in, and out to any format, without ever holding the model twice."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Iterable

import numpy as np

from pixart_jax.conversion.arrays import WEIGHTS, torch_array
from pixart_jax.conversion.control import write_control
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.formats.base import NO_HINTS, Hints, ModelWeights, Source
from pixart_jax.conversion.names.controlnet import BASE, CONTROL, revert_controlnet
from pixart_jax.conversion.names.diffusers import NULL_TEXT, diffusers_config, revert_diffusers
from pixart_jax.conversion.names.pixart import position_table, revert_pixart
from pixart_jax.conversion.stored import StoredModel, write_model
from pixart_jax.conversion.torch_files import load_torch
from pixart_jax.errors import InputError
from pixart_jax.files.arrays import read_npy
from pixart_jax.models.params import parameter_shapes

# Of a file of a null caption: far more than any has.
_NULL_TEXT_BYTES = 256 << 20


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
    weights = source.format.load(source, hints, fallback)
    if null_text is None:
        return weights
    stored = weights.stored
    if stored.null_text == "none":
        raise InputError(f"{source.path}: a class-conditional model has no null caption; leave --null-text out")
    wanted = parameter_shapes(stored.model)[NULL_TEXT]
    if null_text.shape != wanted:
        raise InputError(
            f"the null caption has shape {null_text.shape}, the model takes {wanted}: the text encoder's "
            "features of the empty caption, padded to as many tokens as captions have"
        )
    return dataclasses.replace(
        weights,
        stored=dataclasses.replace(stored, null_text="stored"),
        read=lambda path: null_text if path == NULL_TEXT else weights.read(path),
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
    what, cure = "features of the empty caption", "encode it again"
    if path.suffix == ".npy":
        array = read_npy(path, what, cure, _NULL_TEXT_BYTES)
    else:
        found = load_torch(path)
        array = torch_array(found.get("uncond_prompt_embeds") if isinstance(found, dict) else found, path)
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or (array.ndim == 3 and len(array) != 1):
        raise InputError(f"{path} holds {array.dtype} of shape {array.shape}, not {what}, floats [L, text_dim]; {cure}")
    with np.errstate(over="ignore"):
        features = array.reshape(array.shape[-2:]).astype(np.float32)
    check_finite(features, str(path))
    return features


def write_orbax(target: pathlib.Path, weights: ModelWeights) -> None:
    """A directory of `conversion.stored`, with that of `conversion.control` in it."""
    write_model(target, weights.stored, {path: weights.read(path) for path in weights.paths})
    if weights.control:
        write_control(target, weights.control)


def check_says_prediction(stored: StoredModel, what: str) -> None:
    """Raises InputError for a model that predicts anything but the noise, in a format that cannot say so."""
    if stored.prediction != "eps":
        raise InputError(
            f"the model predicts {stored.prediction!r}, and {what} has no place to say so: whoever opens it would draw "
            "wrong pictures; write our own format, or a whole pipeline of diffusers, whose scheduler says it"
        )


def lost(stored: StoredModel) -> list[str]:
    """What no format but ours has a place for, and no picture is wrong without: one line each."""
    if stored.path_drop is None:
        return []
    first, last = stored.path_drop
    return [
        f"the format cannot say that the model was trained to do without its blocks {first} to {last}: guidance by the "
        "dropped path (--guidance path_drop) takes our own format, or the run"
    ]


def write_transformer(target: pathlib.Path, weights: ModelWeights) -> None:
    """`write_diffusers` without a pipeline around it."""
    check_says_prediction(weights.stored, "a transformer's folder without its pipeline")
    write_diffusers(target, weights)


def write_pixart(target: pathlib.Path, weights: ModelWeights) -> None:
    """A PixArt's own checkpoint, {"state_dict": ...}, with its ControlNet, or the flat one of a DiT; of float32.

    Raises:
      InputError: PyTorch is not installed.
    """
    check_says_prediction(weights.stored, "a .pth of PixArt's own format")
    try:
        import torch
    except ImportError as error:
        raise InputError("a .pth can only be written with PyTorch: pip install torch") from error
    stored, model = weights.stored, weights.stored.model
    table = position_table(stored.position_base, stored.position_scale, model.hidden_size)

    def tensor(array: np.ndarray) -> torch.Tensor:
        """Of the array's own memory: weights that are mapped are not copied. PyTorch warns of memory that must not be
        written to, and nothing writes to it."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            return torch.from_numpy(array)

    state_dict = {"pos_embed": tensor(table)}
    paths = _with_null_text(weights)
    for name, array in revert_pixart(paths, weights.read, model.segments(), model.patch_size):
        state_dict[name] = tensor(array)
    if control := weights.control:
        state_dict = {f"{BASE}{name}": tensor for name, tensor in state_dict.items()}
        for name, array in revert_controlnet(control.paths, control.read, control.num_copies):
            state_dict[f"{CONTROL}{name}"] = tensor(array)
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
        raise InputError(
            "diffusers has no ControlNet for PixArt; this model's can be written with it with --to pixart, and the "
            "ControlNet by itself, as diffusers' research project has it, with --to controlnet"
        )
    model = weights.stored.model
    if model.kv_compress and model.kv_sampling != "conv":
        raise InputError("diffusers has no key/value compression; this model can only be written with --to pixart")
    arrays = revert_diffusers(weights.paths, weights.read, model.segments(), model.patch_size)
    config = diffusers_config(model, weights.stored.position_base, weights.stored.position_scale)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    safetensors.numpy.save_file(dict(arrays), target / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def _with_null_text(weights: ModelWeights) -> Iterable[str]:
    """The parameters that are there: all, or all but the null caption."""
    missing = weights.stored.null_text == "missing"
    return [path for path in weights.paths if not (missing and path == NULL_TEXT)]
