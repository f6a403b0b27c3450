"""The text encoder and the image autoencoder beside a transformer: from their own folders to ours, and back to jax.

Each becomes a directory with `params/`, written by Orbax, and `config.json`, its own, from which the module is built.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from pixart_jax.conversion.sources import WEIGHTS, open_arrays, read_json
from pixart_jax.conversion.stored import check_shapes, stored_leaves, write_params
from pixart_jax.conversion.t5 import convert_t5
from pixart_jax.conversion.vae import convert_vae
from pixart_jax.errors import InputError
from pixart_jax.models.layers import Dtype
from pixart_jax.models.t5 import T5Encoder, encoder_from_config
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.sharding import tree_shardings

# What the parts of a pipeline are called, there and here, and the stem of their files of weights.
STEMS = {"vae": WEIGHTS, "text_encoder": "model"}
TOKENIZER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """An encoder's folder, opened; its weights are not read yet.

    Attributes:
      path: the folder.
      kind: a key of STEMS.
      config: its config.json.
      model: what the config describes.
      arrays: PyTorch's names to arrays, each read when it is asked for.
    """

    path: pathlib.Path
    kind: str
    config: dict[str, Any]
    model: nn.Module
    arrays: Mapping[str, np.ndarray]


def encoder_kind(path: pathlib.Path) -> str | None:
    """The key of STEMS that a folder's config.json tells, or None where there is none or it is something else's."""
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    return {"t5": "text_encoder", "AutoencoderKL": "vae"}.get(config.get("model_type", config.get("_class_name")))


def open_encoder(path: pathlib.Path, kind: str) -> EncoderSource:
    """Opens an encoder's folder.

    Args:
      path: with config.json and weights: safetensors, in one file or in several beside their index, or a `.bin`.
      kind: a key of STEMS.

    Raises:
      InputError: something is not there, damaged, or another model's.
    """
    config = read_json(path / "config.json")
    model = _build(kind, config, path, jnp.float32)
    stem = STEMS[kind]
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json", "pytorch_model.bin", f"{WEIGHTS}.bin"]
    file = next((path / name for name in names if (path / name).exists()), None)
    if file is None:
        raise InputError(f"{path} has no weights; one of these should be there: {', '.join(names)}")
    return EncoderSource(path, kind, config, model, open_arrays(file))


def open_pipeline(path: pathlib.Path) -> list[EncoderSource]:
    """The encoders that are in a pipeline's folder: all of STEMS whose own folders are there.

    Raises:
      InputError: as `open_encoder`.
    """
    return [open_encoder(path / kind, kind) for kind in STEMS if (path / kind / "config.json").exists()]


def write_encoder(target: pathlib.Path, source: EncoderSource) -> None:
    """Writes a new directory.

    The text encoder's parameters are bfloat16 where the source's all are, else float32; the autoencoder's are float32.
    Arrays are read one by one, and what is written is all that is in memory.

    Raises:
      InputError: the weights do not fit the config; begins with the source's path.
      OSError: the disk is full, or cannot be written.
    """
    expected = {path: leaf.shape for path, leaf in _flatten(_shapes(source.model)).items()}
    try:
        if source.kind == "text_encoder":
            # What is stored for good is what was trained: twice the bytes would not make it more exact.
            dtype = jnp.bfloat16 if source.arrays.bfloat16 else np.float32
            params = convert_t5(source.arrays, source.model.num_layers, expected, dtype=dtype)
        else:
            params = convert_vae(source.arrays, expected)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    target.mkdir()
    write_params(target / "params", params)
    # Of the private entries, which may name a path on somebody's machine, only the class is needed.
    config = {name: value for name, value in source.config.items() if not name.startswith("_") or name == "_class_name"}
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files of a tokenizer's folder; links become the files that they lead to."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def restore_text_encoder(
    directory: str | pathlib.Path, mesh: Mesh, *, dtype: Dtype = jnp.float32
) -> tuple[T5Encoder, Any]:
    """A text encoder that `write_encoder` wrote.

    Args:
      directory: its own, `text_encoder/` beside a model.
      mesh: over which `sharding.tree_shardings` spreads the parameters.
      dtype: of matrix products. The parameters keep the dtype that they are stored in.

    Returns:
      (module, parameters as jax arrays).

    Raises:
      InputError: there is none, it is damaged, or its config.json is another model's.
    """
    return _restore(pathlib.Path(directory), "text_encoder", mesh, dtype)


def restore_vae(directory: str | pathlib.Path, mesh: Mesh, *, dtype: Dtype = jnp.float32) -> tuple[AutoencoderKL, Any]:
    """An image autoencoder that `write_encoder` wrote; all else as `restore_text_encoder`."""
    return _restore(pathlib.Path(directory), "vae", mesh, dtype)


def _restore(directory: pathlib.Path, kind: str, mesh: Mesh, dtype: Dtype):
    model = _build(kind, read_json(directory / "config.json"), directory, dtype)
    shapes = _shapes(model)
    path = (directory / "params").absolute()
    check_shapes(path, {name: leaf.shape for name, leaf in _flatten(shapes).items()})
    stored = flax.traverse_util.unflatten_dict(stored_leaves(path), sep="/")
    abstract = jax.tree.map(
        lambda shape, leaf, sharding: jax.ShapeDtypeStruct(shape.shape, leaf.dtype, sharding=sharding),
        shapes,
        stored,
        tree_shardings(shapes, mesh),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return model, checkpointer.restore(path, abstract)
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def _build(kind: str, config: Mapping[str, Any], path: pathlib.Path, dtype: Dtype) -> nn.Module:
    if kind == "text_encoder":
        return encoder_from_config(config, path=path / "config.json", dtype=dtype)
    try:
        return AutoencoderKL.from_config(config, dtype)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _shapes(model: nn.Module):
    """Shapes of the parameters, nested; allocates nothing."""
    if isinstance(model, T5Encoder):
        inputs = np.zeros((1, 1), np.int32)
    else:
        inputs = np.zeros((1, model.downsample, model.downsample, model.in_channels), np.float32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))["params"]


def _flatten(tree) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")
