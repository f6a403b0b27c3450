"""A CLIP from transformers' folder, or from the directory that tools.convert made of it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import flax
import numpy as np

from pixart_jax.conversion.encoders import open_encoder, read_encoder
from pixart_jax.errors import InputError
from pixart_jax.models.clip import Clip


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedClip:
    """A CLIP with its weights.

    Attributes:
      path: the folder.
      model: its towers.
      params: nested, f32 arrays of numpy.
      tokenizer: the folder of its tokenizer; None where there is none.
    """

    path: pathlib.Path
    model: Clip
    params: dict[str, Any]
    tokenizer: pathlib.Path | None

    def digest(self, tower: str) -> str:
        """Hex SHA-256 of a tower's sizes and weights: the same whatever format they came in.

        Args:
          tower: "vision_model" or "text_model".
        """
        sizes = {"vision_model": self.model.vision, "text_model": self.model.text}[tower]
        digest = hashlib.sha256(repr(sizes).encode())
        for path, array in sorted(flax.traverse_util.flatten_dict(self.params[tower], sep="/").items()):
            digest.update(f"{path}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_clip(path: pathlib.Path) -> LoadedClip:
    """Opens a CLIP.

    Args:
      path: a folder with config.json and weights of CLIPModel, CLIPVisionModelWithProjection or
        CLIPTextModelWithProjection (safetensors or .bin, in one file or several), or one that tools.convert wrote.

    Raises:
      InputError: it is none, it is damaged, or its weights are another model's; names every array that does not fit.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json; name the folder of a CLIP as transformers saves it")
    source = open_encoder(path, "clip")
    params = flax.traverse_util.unflatten_dict(read_encoder(source), sep="/")
    assert isinstance(source.model, Clip)
    return LoadedClip(path, source.model, params, source.tokenizer)
