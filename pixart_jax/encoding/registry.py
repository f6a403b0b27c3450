"""Which text encoder and autoencoder a data set of feature shards was made with, and where a run keeps them.

A data set names its two encoders in the manifest and keeps their files beside the shards where they are its own.
`load_autoencoder` and `load_text_encoder` are the only places that map those names to code.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pixart_jax.data.shards.manifest import MANIFEST_FILE, Manifest, manifest_text, read_manifest
from pixart_jax.data.word_encoder import FILES as WORD_ENCODER_FILES
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.minilm import FILES as MINILM_FILES
from pixart_jax.encoding.minilm import MiniLM
from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

LINEAR_AUTOENCODER_FILE = "autoencoder.npz"


class TextEncoder(Protocol):
    """What a data set keeps to encode captions with.

    Attributes:
      dim: width of the features.
      max_tokens: text positions of every encoded caption.
    """

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def encode(self, captions: Sequence[str], /) -> tuple[np.ndarray, np.ndarray]:
        """B captions to f32[B, max_tokens, dim], zero after each one's last token, and i32[B], their lengths."""


@dataclasses.dataclass(frozen=True)
class KeptTextEncoder:
    """A kind of text encoder that lies beside the data: its files there, and what opens their folder."""

    files: tuple[str, ...]
    load: Callable[[str | os.PathLike], TextEncoder]


# By the manifest's name.
_TEXT_ENCODERS = {
    "words": KeptTextEncoder(WORD_ENCODER_FILES, WordEncoder.load),
    "minilm": KeptTextEncoder(MINILM_FILES, MiniLM.load),
}

# How a run and a sampler are told where converted encoders are.
_CONVERTED = {
    "vae": "--vae; in training config.data.vae",
    "text_encoder": "--text-encoder; in training config.data.text_encoder",
}


def kept_encoders(manifest: Manifest) -> dict[str, bool]:
    """By kind, whether the encoder that made a data set lies beside it; else it is a converted one, to be named."""
    return {"text_encoder": manifest.text_encoder in _TEXT_ENCODERS, "vae": manifest.autoencoder == "linear"}


def copy_encoders(data_dir: str | os.PathLike, manifest: Manifest, target: str | os.PathLike) -> None:
    """Puts a data set's manifest and the files of its encoders into the folder `target`.

    A run keeps them in its workdir: data can move or be made anew, and features of another encoder that fits in shape
    draw nothing but noise.

    Raises:
      InputError: `target` has the files of another encoder; nothing is changed.
    """
    data_dir, target = pathlib.Path(data_dir), pathlib.Path(target)
    for file in _kept_files(data_dir, manifest):
        if (target / file).exists() and (target / file).read_bytes() != (data_dir / file).read_bytes():
            raise InputError(
                f"{data_dir / file} is not the one this run started with ({target / file}): the data were made anew; "
                "name another workdir"
            )
    target.mkdir(parents=True, exist_ok=True)
    copy_encoder_files(data_dir, manifest, target)
    _copy(data_dir / MANIFEST_FILE, target)


def copy_encoder_files(data_dir: str | os.PathLike, manifest: Manifest, target: str | os.PathLike) -> None:
    """Puts the files of a data set's encoders, without its manifest, into the folder `target`, over what is there:
    beside a data set whose latents and text features are theirs too."""
    for file in _kept_files(data_dir, manifest):
        _copy(pathlib.Path(data_dir) / file, pathlib.Path(target))


def _kept_files(data_dir: str | os.PathLike, manifest: Manifest) -> list[str]:
    """Of encoders that lie beside the data."""
    files = [LINEAR_AUTOENCODER_FILE] if manifest.autoencoder == "linear" else []
    files += _TEXT_ENCODERS[manifest.text_encoder].files if manifest.text_encoder in _TEXT_ENCODERS else ()
    return [file for file in files if (pathlib.Path(data_dir) / file).exists()]


def _copy(path: pathlib.Path, target: pathlib.Path) -> None:
    content = path.read_bytes()
    write_atomically(target / path.name, operator.methodcaller("write", content))


def copy_own_encoders(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Those that a run keeps, as the quickstart's, which are no T5 and no autoencoder of diffusers."""
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = read_manifest(folder, may_be_empty=True)
    if any(kept_encoders(manifest).values()):
        copy_encoders(folder, manifest, target)


def record_encoders(manifest: Manifest, target: str | os.PathLike) -> None:
    """Puts the manifest of pictures that a run encodes as it goes into the folder `target`.

    Their encoders are too large to keep, so that whoever samples names them again; the manifest says what must fit.

    Raises:
      InputError: `target` has that of other latents or text features; nothing is changed.
    """
    target = pathlib.Path(target)
    if (target / MANIFEST_FILE).exists():
        begun = read_manifest(target, may_be_empty=True)
        for field in ("latent_scale", "latent_channels", "text_dim", "max_text_tokens", "caption_cleaning", "control"):
            if getattr(begun, field) != getattr(manifest, field):
                raise InputError(
                    f"{target / MANIFEST_FILE}: this run started with {field} {getattr(begun, field)!r}, and now it "
                    f"would be {getattr(manifest, field)!r}; go on with the encoders (config.data.vae, "
                    "config.data.text_encoder) and settings that it started with, or name another workdir"
                )
    target.mkdir(parents=True, exist_ok=True)
    content = manifest_text(manifest)
    write_atomically(target / MANIFEST_FILE, lambda file: file.write(content.encode()))


def load_autoencoder(data_dir: str | os.PathLike, manifest: Manifest) -> LinearAutoencoder:
    """The autoencoder that made the latents of a data set.

    Raises:
      InputError: `manifest.autoencoder` is a name not known here, or its file is missing or does not fit the manifest.
    """
    if manifest.autoencoder != "linear":
        raise InputError(
            f'{data_dir}: manifest.json names autoencoder "{manifest.autoencoder}", and only "linear" is known here; '
            f"encode the data with it, or name a converted autoencoder ({_CONVERTED['vae']})"
        )
    path = pathlib.Path(data_dir) / LINEAR_AUTOENCODER_FILE
    autoencoder = LinearAutoencoder.load(path)
    _check_fit(path, "latent_channels", autoencoder.channels, manifest)
    _check_fit(path, "downsample", autoencoder.block, manifest)
    return autoencoder


def load_text_encoder(data_dir: str | os.PathLike, manifest: Manifest) -> TextEncoder:
    """The text encoder that made the text features of a data set.

    Raises:
      InputError: `manifest.text_encoder` is a name not known here, or its files are missing or do not fit the manifest.
    """
    if manifest.text_encoder not in _TEXT_ENCODERS:
        known = " and ".join(f'"{name}"' for name in _TEXT_ENCODERS)
        raise InputError(
            f'{data_dir}: manifest.json names text_encoder "{manifest.text_encoder}", and only {known} are known here; '
            f"encode the data with it, or name a converted text encoder ({_CONVERTED['text_encoder']})"
        )
    encoder = _TEXT_ENCODERS[manifest.text_encoder].load(data_dir)
    _check_fit(data_dir, "text_dim", encoder.dim, manifest)
    _check_fit(data_dir, "max_text_tokens", encoder.max_tokens, manifest)
    return encoder


def _check_fit(path: str | os.PathLike, field: str, value: int, manifest: Manifest) -> None:
    if value != getattr(manifest, field):
        raise InputError(
            f"{path}: has {field} {value}, but the manifest beside it says {getattr(manifest, field)}: the files are "
            "of different data sets; make the data set again"
        )
