"""The encoders beside a transformer, and CLIP, which measures: what is said and done of each where others differ."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from pixart_jax.conversion.arrays import WEIGHTS
from pixart_jax.conversion.names.clip import POSITION_IDS, convert_clip, revert_clip
from pixart_jax.conversion.names.t5 import convert_t5, revert_t5
from pixart_jax.conversion.names.vae import convert_vae, revert_vae
from pixart_jax.errors import InputError
from pixart_jax.models.clip import Clip
from pixart_jax.models.clip_config import clip_from_config
from pixart_jax.models.layers import Dtype
from pixart_jax.models.t5 import T5Encoder, encoder_from_config
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.tokens import DOWNSAMPLE

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class EncoderKind:
    """What an encoder's folder holds, and what becomes of it; an entry of KINDS.

    Attributes:
      title: what it is, for people.
      called: what its config.json may call it.
      stem: of its files of weights.
      marker: pattern of a name that its arrays have.
      has_tokenizer: whether one goes with it.
      files: what else does, where it is there.
      beside: pattern of names whose arrays are not the model's and are never read.
      may_be_bfloat16: whether its parameters may be.
      build: (config.json, its path, dtype of matrix products) -> module. Raises InputError if it is another model's.
      inputs: what the module can be called with, as small as may be.
      convert: (PyTorch's names and arrays, module, '/'-joined paths and shapes, whether to bfloat16) -> parameters.
      revert: (parameters, which are emptied, module) -> PyTorch's names and arrays of today.
      reference_config: (config.json, arrays) -> config.json of what `revert` gives.
    """

    title: str
    called: Sequence[str]
    stem: str
    marker: str
    has_tokenizer: bool
    may_be_bfloat16: bool
    build: Callable[[Mapping[str, Any], pathlib.Path, Dtype], nn.Module]
    # The module is what `build` gave, of the kind's own class.
    inputs: Callable[[Any], Sequence[np.ndarray]]
    convert: Callable[[Mapping[str, np.ndarray], Any, Shapes, bool], dict[str, np.ndarray]]
    revert: Callable[[dict[str, np.ndarray], Any], Iterator[tuple[str, np.ndarray]]]
    reference_config: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], dict[str, Any]]
    files: Sequence[str] = ()
    beside: str = "(?!)"


def _build_t5(config: Mapping[str, Any], path: pathlib.Path, dtype: Dtype) -> T5Encoder:
    return encoder_from_config(config, path=path, dtype=dtype)


def _convert_t5(
    arrays: Mapping[str, np.ndarray], model: T5Encoder, expected: Shapes, bfloat16: bool
) -> dict[str, np.ndarray]:
    return convert_t5(arrays, model.num_layers, expected, dtype=jnp.bfloat16 if bfloat16 else np.float32)


def _t5_config(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    # A whole T5's say that it has a decoder, and of another dtype than they now have.
    return _of_dtype(config, arrays) | {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}


def _of_dtype(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name != "torch_dtype"}
    dtypes = {array.dtype.name for array in arrays.values()}
    return kept | {"dtype": dtypes.pop()}


def build_vae(config: Mapping[str, Any], path: pathlib.Path, dtype: Dtype) -> AutoencoderKL:
    """The autoencoder that a config.json at `path` describes.

    Raises:
      InputError: it is another model's; or of other latents or pictures than every PixArt's, which would be drawn at
        one size and stretched to another.
    """
    try:
        model = AutoencoderKL.from_config(config, dtype)
    except InputError as error:
        raise InputError(f"{path.parent}: {error}") from error
    if model.downsample != DOWNSAMPLE:
        raise InputError(
            f"{path}: block_out_channels has {len(model.block_out_channels)} entries, so that the autoencoder shrinks "
            f"pictures by {model.downsample}; every PixArt's shrinks them by {DOWNSAMPLE}: use that of its pipeline"
        )
    if (model.in_channels, model.out_channels) != (3, 3):
        raise InputError(
            f"{path}: pictures of {model.in_channels} channels go in and of {model.out_channels} come out, where "
            "in_channels and out_channels must be 3: use the autoencoder of PixArt's pipeline"
        )
    return model


def _clip_inputs(model: Clip) -> list[np.ndarray]:
    size = model.vision.image_size if model.vision else 1
    return [np.zeros((1, size, size, 3), np.float32), np.zeros((1, 1), np.int32)]


def _clip_depths(model: Clip) -> dict[str, int]:
    towers = {"vision_model": model.vision, "text_model": model.text}
    return {name: sizes.num_hidden_layers for name, sizes in towers.items() if sizes}


def _clip_config(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    architectures = {
        "clip": "CLIPModel",
        "clip_vision_model": "CLIPVisionModelWithProjection",
        "clip_text_model": "CLIPTextModelWithProjection",
    }
    return _of_dtype(config, arrays) | {"architectures": [architectures[config["model_type"]]]}


# By the name that they have in a pipeline, there and here.
ENCODER_KINDS = {
    "vae": EncoderKind(
        title="an image autoencoder",
        called=("AutoencoderKL",),
        stem=WEIGHTS,
        marker=r"decoder\.conv_in\.weight",
        has_tokenizer=False,
        # Its first and last convolutions stay in float32.
        may_be_bfloat16=False,
        build=build_vae,
        inputs=lambda model: [np.zeros((1, model.downsample, model.downsample, model.in_channels), np.float32)],
        convert=lambda arrays, model, expected, bfloat16: convert_vae(arrays, expected),
        revert=lambda params, model: revert_vae(list(params), params.pop),
        reference_config=lambda config, arrays: dict(config),
    ),
    "text_encoder": EncoderKind(
        title="a T5 encoder",
        called=("t5",),
        stem="model",
        marker=r"encoder\.final_layer_norm\.weight",
        has_tokenizer=True,
        may_be_bfloat16=True,
        build=_build_t5,
        inputs=lambda model: [np.zeros((1, 1), np.int32)],
        convert=_convert_t5,
        revert=lambda params, model: revert_t5(list(params), params.pop, model.num_layers),
        reference_config=_t5_config,
    ),
}
CLIP = EncoderKind(
    title="a CLIP",
    called=("clip", "clip_vision_model", "clip_text_model"),
    stem="model",
    marker=r"(text_model|vision_model)\.encoder\.layers\.0\.layer_norm1\.weight",
    has_tokenizer=True,
    files=("preprocessor_config.json",),
    beside=POSITION_IDS,
    # Its features are compared to the last digit.
    may_be_bfloat16=False,
    build=lambda config, path, dtype: clip_from_config(config, path=path),
    inputs=_clip_inputs,
    convert=lambda arrays, model, expected, bfloat16: convert_clip(arrays, _clip_depths(model), expected),
    revert=lambda params, model: revert_clip(list(params), params.pop, _clip_depths(model)),
    reference_config=_clip_config,
)
KINDS = ENCODER_KINDS | {"clip": CLIP}
