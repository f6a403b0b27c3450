"""The networks that a config measures the pictures of pairs with."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Params
from pixart_jax.config import ConfigDict, architecture, require_setting
from pixart_jax.conversion.encoders import restore_vae
from pixart_jax.conversion.lpips import load_lpips
from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.devices.sharding import tree_shardings
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.models.lpips import MIN_SIZE, Lpips
from pixart_jax.objectives.picture_distance import DECODER, LPIPS, PictureDistance
from pixart_jax.training.inputs.base import parse_sources
from pixart_jax.training.program import HeldDistance
from pixart_jax.training.waits import announced


class OpenedDistance(NamedTuple):
    """A distance, and what of it must be the same on every process."""

    held: HeldDistance
    facts: dict[str, str]


def open_distance(config: ConfigDict, mesh: Mesh) -> OpenedDistance | None:
    """That of pictures, its networks on the mesh; None where latents are compared. For pairs that were found to fit.

    Raises:
      InputError: the pairs are of several sizes or too small, or there is no decoder for them; or the weights are
        missing, damaged or another network's.
    """
    objective = config.objective
    if objective.distance != "lpips":
        return None
    folders = [folder for folder, _ in parse_sources(config.data.pair_source, "data.pair_source")]
    manifests = [read_manifest(folder) for folder in folders]
    sizes = sorted({size for manifest in manifests for size in manifest.bucket_histogram})
    height, width = (int(side) for side in sizes[0].split("x"))
    require_setting(
        config,
        len(sizes) == 1 and min(height, width) >= MIN_SIZE,
        "data.pair_source",
        f"config.objective.distance='lpips' compares pictures of one size, of {MIN_SIZE} pixels or more, and the pairs "
        f"are of {', '.join(sizes)}; draw them of captions of one size, or set the distance to 'l2'",
    )
    paths = [pathlib.Path(path) for path in (objective.lpips_vgg, objective.lpips_heads)]
    with announced("reading the networks of the pictures' distance"):
        weights = load_lpips(*paths)
        decode, decoder = _decoder(config, mesh)
    patch_size = architecture(config)["patch_size"]
    cell = manifests[0].downsample * patch_size
    measure = PictureDistance(
        decode,
        Lpips(jnp.dtype(config.dtype)),
        (height // cell, width // cell),
        patch_size,
        manifests[0].latent_scale,
        config.model.kv_compress_ratio,
    )
    held = HeldDistance(measure, {LPIPS: _laid_over(mesh, weights), DECODER: decoder})
    return OpenedDistance(held, {f"weights of LPIPS, {path.name}": _digest(path) for path in paths})


def _decoder(config: ConfigDict, mesh: Mesh) -> tuple[Callable[[Params, jax.Array], jax.Array], Params]:
    """What decodes the latents of the training data, of which the pairs' are, and its parameters on the mesh."""
    if not config.data.vae:
        # Its few numbers may be constants of the program.
        (folder, _), *_ = parse_sources(config.data.source)
        linear = load_autoencoder(folder, read_manifest(folder))
        return lambda _, latents: linear.decode(latents), {}
    model, params = restore_vae(config.data.vae, mesh, dtype=jnp.dtype(config.dtype))
    half = {name: tree for name, tree in params.items() if name in ("decoder", "post_quant_conv")}

    def decode(params, latents):
        return model.apply({"params": params}, latents, method="decode")

    return decode, half


def _laid_over(mesh: Mesh, arrays: Params) -> Params:
    def place(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(place, arrays, tree_shardings(arrays, mesh))


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
