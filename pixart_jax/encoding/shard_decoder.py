"""The autoencoder that turns the latents of feature shards back into pictures."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np

from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.encoding.pretrained import Autoencoder, local_mesh
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.errors import InputError


def shard_decoder(
    folder: str | os.PathLike, manifest: Manifest, vae: str | pathlib.Path | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Unscaled latents f32[n, h, w, C] to pictures f32[n, H, W, 3], about [-1, 1].

    Args:
      folder: of the shards.
      manifest: of them.
      vae: a converted autoencoder; not needed where the shards have a linear one of their own.

    Raises:
      InputError: it is needed and not given, or is not the one that made the latents.
    """
    if manifest.autoencoder == "linear":
        return load_autoencoder(folder, manifest).decode
    if vae is None:
        raise InputError(f"{folder}: latents of {manifest.autoencoder} are decoded by it; name it with --vae")
    autoencoder = Autoencoder(vae, mesh=local_mesh(), keep=True)
    for field in ("latent_channels", "latent_scale"):
        if getattr(autoencoder, field) != getattr(manifest, field):
            raise InputError(
                f"--vae {vae}: its {field} is {getattr(autoencoder, field)}, that of {folder} is "
                f"{getattr(manifest, field)}; name the autoencoder that the set was made with"
            )
    return autoencoder.decode
