"""Feature shards that a config names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from absl import logging

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import check_sources, make_iterator
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.encoding.registry import copy_encoders, load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.figures.images import false_colour
from pixart_jax.training.inputs.base import SYNTHETIC, Share, TrainingData, parse_sources
from pixart_jax.training.inputs.encoders import open_autoencoder, open_prompts
from pixart_jax.training.inputs.prior import with_prior


def open_shards(config: ConfigDict, spec: BatchSpec, share: Share) -> TrainingData:
    require = functools.partial(require_setting, config)
    sources = parse_sources(config.data.source)
    prior = parse_sources(config.data.prior_source, "data.prior_source") if config.data.prior_source.strip() else []
    manifests = check_sources([*sources, *prior], spec)
    (directory, _), manifest = sources[0], manifests[0]
    decode: Callable[[np.ndarray], np.ndarray]
    if config.data.vae:
        require(
            manifest.autoencoder == "vae",
            "data.vae",
            f"{directory} was made with the autoencoder \"{manifest.autoencoder}\", which is another; set it to ''",
        )
        decode = open_autoencoder(config, manifest.latent_scale).decode
    else:
        decode = own_decoder(directory, manifest)
    row, batches = with_prior(
        config,
        spec,
        lambda half, given: make_iterator(given, half, seed=config.seed, num_workers=config.data.num_workers, **share),
        [sources, *[prior] * bool(prior)],
    )
    return TrainingData(
        batches=batches,
        samples=ShardReader(directory),
        manifest=manifest,
        decode=decode,
        prompts=open_prompts(config, spec, manifest, lambda: load_text_encoder(directory, manifest)),
        keep_encoders=functools.partial(copy_encoders, directory, manifest),
        row=row,
    )


def shard_folders(config: ConfigDict) -> list[str]:
    """The folders of feature shards that a config reads."""
    sources = [(config.eval.source, "eval.source")] if config.eval.source.strip() else []
    if not (config.data.online or config.data.source.strip() == SYNTHETIC):
        sources.append((config.data.source, "data.source"))
        if config.data.prior_source.strip():
            sources.append((config.data.prior_source, "data.prior_source"))
    return [folder for text, key in sources for folder, _ in parse_sources(text, key)]


def own_decoder(directory: str, manifest: Manifest) -> Callable[[np.ndarray], np.ndarray]:
    """That of the autoencoder beside the shards."""
    try:
        return load_autoencoder(directory, manifest).decode
    except InputError as error:
        logging.warning("sample grids are drawn in false colours: %s", error)
        return false_colour
