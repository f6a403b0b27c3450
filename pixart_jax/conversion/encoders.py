"""The text encoder and the image autoencoder beside a transformer, and CLIP: from their own folders to ours, back, and
to jax.

Ours is a directory with `params/`, written by Orbax, and `config.json`, the encoder's own, from which the module is
built; a text encoder has its tokenizer in `tokenizer/` below.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.conversion.arrays import WEIGHTS, FileArrays, open_arrays, read_json
from pixart_jax.conversion.encoder_kinds import ENCODER_KINDS, KINDS
from pixart_jax.conversion.finite import check_finite
from pixart_jax.conversion.stored_arrays import StoredArrays, check_shapes, restore_tree, stored_leaves, write_params
from pixart_jax.conversion.weight_files import check_weight_file, find_weights
from pixart_jax.devices.sharding import tree_shardings
from pixart_jax.errors import InputError
from pixart_jax.models.layers import Dtype
from pixart_jax.models.params import kernels_as
from pixart_jax.models.t5 import T5Encoder
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.shortcuts.eight_bits import is_eight_bit

# What that part of a pipeline is called, there and here.
TOKENIZER = "tokenizer"

# A tokenizer's files: one of the first three makes a folder a tokenizer's, the others may go with them.
_TOKENIZER_FILES = (
    "tokenizer.json", "spiece.model", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """An encoder's folder, opened; its weights are not read yet.

    Attributes:
      path: the folder.
      kind: a key of KINDS.
      config: its config.json.
      model: what the config describes.
      arrays: PyTorch's names, or in a directory of ours '/'-joined paths, to arrays, each read when it is asked for.
      tokenizer: the folder that holds a text encoder's tokenizer, perhaps among other files; None where there is none.
    """

    path: pathlib.Path
    kind: str
    config: dict[str, Any]
    model: nn.Module
    arrays: FileArrays | StoredArrays
    tokenizer: pathlib.Path | None

    @property
    def bfloat16(self) -> bool:
        """Whether the parameters are stored as bfloat16: a text encoder's where the source's all are.

        What is stored for good is what was trained: twice the bytes would not make it more exact. All else is float32,
        a float16 source's too, because T5 overflows in that.
        """
        return KINDS[self.kind].may_be_bfloat16 and self.arrays.bfloat16


def encoder_kind(path: pathlib.Path) -> str | None:
    """The key of KINDS that a folder's config.json tells, or None where there is none or it is another's."""
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    called = str(config.get("model_type", config.get("_class_name")))
    return next((name for name, kind in KINDS.items() if called in kind.called), None)


def open_encoder(path: pathlib.Path, kind: str) -> EncoderSource:
    """Opens an encoder's folder.

    Args:
      path: with config.json and weights: safetensors, or `.bin`, in one file or in several beside their index, or
        our `params/`.
      kind: a key of KINDS.

    Raises:
      InputError: something is not there, damaged, or another model's.
    """
    config = read_json(path / "config.json")
    model = _build(kind, config, path, jnp.float32)
    tokenizer = find_tokenizer(path) if KINDS[kind].has_tokenizer else None
    if (path / "params").is_dir():
        return EncoderSource(path, kind, config, model, StoredArrays(path / "params", _paths(kind, model)), tokenizer)
    stem = KINDS[kind].stem
    names = [f"{stem}.safetensors", "pytorch_model.bin", f"{WEIGHTS}.bin"]
    file = find_weights(path, names)
    if file is None:
        raise InputError(f"{path} has no weights; one of these should be there: {', '.join(names)}")
    arrays = open_arrays(file, [KINDS[kind].marker], KINDS[kind].beside)
    return EncoderSource(path, kind, config, model, arrays, tokenizer)


def find_tokenizer(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of a text encoder's tokenizer: ours lies below it, Google's and PixArt-α's has no folder of its own,
    and a pipeline's lies beside it; raises InputError for files of it that are empty or only stand for files."""
    folders = [path / TOKENIZER, path, path.absolute().parent / TOKENIZER]
    files = {f: [name for name in _TOKENIZER_FILES if (f / name).exists() and not (f / name).is_dir()] for f in folders}
    found = next((folder for folder in folders if set(files[folder]) & set(_TOKENIZER_FILES[:3])), None)
    if found:
        for name in files[found]:
            check_weight_file(found / name)
            if not (found / name).stat().st_size:
                raise InputError(f"{found / name} is damaged: it is empty; download it again")
    return found


def open_encoders(path: pathlib.Path) -> list[EncoderSource]:
    """The encoders in a pipeline's folder or in a directory of ours: all of ENCODER_KINDS whose own folders are there.

    Raises:
      InputError: as `open_encoder`.
    """
    return [open_encoder(path / kind, kind) for kind in ENCODER_KINDS if (path / kind / "config.json").exists()]


def write_encoder(target: pathlib.Path, source: EncoderSource) -> None:
    """Writes a new directory of ours.

    Its dtype is what `EncoderSource.bfloat16` tells. Arrays are read one by one, and what is written is all that is in
    memory.

    Raises:
      InputError: the weights do not fit the config; begins with the source's path.
      OSError: the disk is full, or cannot be written.
    """
    params = read_encoder(source)
    target.mkdir()
    write_params(target / "params", params)
    _write_beside(target, source, source.config)
    if source.tokenizer:
        copy_tokenizer(source.tokenizer, target / TOKENIZER)


def write_reference_encoder(target: pathlib.Path, source: EncoderSource) -> None:
    """Writes a new folder that transformers' or diffusers' class of that model opens, without a tokenizer.

    Of the names that they give their arrays today, in one file, of the dtype that `write_encoder` stores.

    Raises:
      InputError, OSError: as `write_encoder`.
    """
    import safetensors.numpy

    kind = KINDS[source.kind]
    arrays = dict(kind.revert(read_encoder(source), source.model))
    config = kind.reference_config(source.config, arrays)
    target.mkdir()
    safetensors.numpy.save_file(arrays, target / f"{kind.stem}.safetensors", metadata={"format": "pt"})
    _write_beside(target, source, config)


def read_encoder(source: EncoderSource) -> dict[str, np.ndarray]:
    """Our parameters of an encoder, '/'-joined path to array; raises InputError as `write_encoder`."""
    if isinstance(source.arrays, StoredArrays):
        params = source.arrays.read_all()
        for path, array in params.items():
            check_finite(array, f"{source.path}: {path}")
        return params
    expected = _paths(source.kind, source.model)
    try:
        return KINDS[source.kind].convert(source.arrays, source.model, expected, source.bfloat16)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def _write_beside(target: pathlib.Path, source: EncoderSource, config: Mapping[str, Any]) -> None:
    # Of the private entries, which may name a path on somebody's machine, only the class is needed.
    config = {name: value for name, value in config.items() if not name.startswith("_") or name == "_class_name"}
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in KINDS[source.kind].files:
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, target / name)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a tokenizer's files to a folder, which may be there; links become the files that they lead to."""
    target.mkdir(exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def restore_text_encoder(
    directory: str | pathlib.Path, mesh: Mesh, *, dtype: Dtype = jnp.float32, int8: bool = False
) -> tuple[T5Encoder, Any]:
    """A text encoder that `write_encoder` wrote.

    Args:
      directory: its own, `text_encoder/` beside a model.
      mesh: over which `sharding.tree_shardings` spreads the parameters.
      dtype: of matrix products. Kernels come in bfloat16 if that is bfloat16, or if they are stored so; the rest as it
        is stored.
      int8: kernels come as int8 and a scale for each output, for `shortcuts.eight_bits.in_eight_bits`.

    Returns:
      (module, parameters as jax arrays).

    Raises:
      InputError: there is none, it is damaged, or its config.json is another model's.
    """
    return _restore(pathlib.Path(directory), "text_encoder", mesh, dtype, is_eight_bit if int8 else lambda name: False)


def restore_vae(directory: str | pathlib.Path, mesh: Mesh, *, dtype: Dtype = jnp.float32) -> tuple[AutoencoderKL, Any]:
    """An image autoencoder that `write_encoder` wrote, its parameters as they are stored; else as the text encoder."""
    return _restore(pathlib.Path(directory), "vae", mesh, dtype, lambda name: False)


def _restore(directory: pathlib.Path, kind: str, mesh: Mesh, dtype: Dtype, is_eight_bit: Callable[[str], bool]):
    model = _build(kind, read_json(directory / "config.json"), directory, dtype)
    shapes = _shapes(kind, model)
    path = (directory / "params").absolute()
    check_shapes(path, _paths(kind, model))
    stored = flax.traverse_util.unflatten_dict(stored_leaves(path), sep="/")
    abstract = jax.tree.map(
        lambda shape, leaf, sharding: jax.ShapeDtypeStruct(shape.shape, leaf.dtype, sharding=sharding),
        shapes,
        stored,
        tree_shardings(shapes, mesh),
    )
    if KINDS[kind].may_be_bfloat16 and jnp.dtype(dtype) == jnp.bfloat16:
        abstract = kernels_as(dtype, abstract)
    return model, restore_tree(path, abstract, is_eight_bit=is_eight_bit)


def _build(kind: str, config: Mapping[str, Any], path: pathlib.Path, dtype: Dtype) -> nn.Module:
    return KINDS[kind].build(config, path / "config.json", dtype)


@functools.lru_cache(maxsize=16)  # Asked for twice by whoever opens an encoder, and tracing one takes a second.
def _shapes(kind: str, model: nn.Module):
    """Shapes of the parameters, nested; allocates nothing."""
    inputs = KINDS[kind].inputs(model)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]


def _paths(kind: str, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter."""
    shapes = flax.traverse_util.flatten_dict(_shapes(kind, model), sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}
