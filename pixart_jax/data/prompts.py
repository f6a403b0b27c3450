"""Captions that belong to no picture, as samples: what draws a data set's captions then draws them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pixart_jax.data.captions import CLEANING
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.errors import InputError

# Cleaned captions -> features f32[length, text_dim] of each.
EncodeText = Callable[[Sequence[str]], list[np.ndarray]]


def read_prompts(path: pathlib.Path, option: str) -> list[str]:
    """The lines of a text file that are not blank.

    Args:
      option: what named the file, for errors.

    Raises:
      InputError: no such file, not UTF-8, or nothing but blank lines.
    """
    try:
        prompts = split_prompts(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: {error}; it must be a text file in UTF-8, a prompt a line") from error
    if not prompts:
        raise InputError(f"{option} {path}: holds no prompt; write one a line")
    return prompts


def split_prompts(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def configured_prompts(text: str) -> list[str]:
    """Those of `config.sample.prompts`, which are lines, or the name of a file of them; [] where it is not set.

    Raises:
      InputError: no such file, or no prompt in it or in the lines.
    """
    if not text:
        return []
    if text.endswith(".txt") and len(text.splitlines()) == 1:
        return read_prompts(pathlib.Path(text), "config.sample.prompts")
    if prompts := split_prompts(text):
        return prompts
    raise InputError(f"config.sample.prompts = {text!r}: holds no prompt; write one a line, or set it to ''")


def prompt_samples(
    prompts: Sequence[str], encode_text: EncodeText, manifest: Manifest, resolution: int
) -> list[Sample]:
    """Prompts as samples of a data set, square and with latents of zeros.

    Args:
      prompts: as a person writes them; they are cleaned as the data set's captions were.
      encode_text: the data set's text encoder; the only one that works long.
      manifest: of the data set.
      resolution: pixels along a side.
    """
    clean = CLEANING[manifest.caption_cleaning]
    features = encode_text([clean(prompt) for prompt in prompts])
    size = (resolution, resolution)
    latents = np.zeros((*manifest.latent_grid(size), manifest.latent_channels), np.float32)
    return [
        Sample(
            key=f"prompt-{number}",
            image_size=size,
            bucket=size,
            latent_mean=latents,
            latent_std=None,
            texts=(Text(prompt, np.asarray(text, np.float32)),),
        )
        for number, (prompt, text) in enumerate(zip(prompts, features, strict=True))
    ]
