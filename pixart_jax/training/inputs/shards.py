"""Feature shards that a config names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from absl import logging

from pixart_jax.config import ConfigDict, flatten, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import check_sources, make_iterator
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.encoding.registry import copy_encoders, load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.figures.images import false_colour
from pixart_jax.training.inputs.base import SYNTHETIC, Share, TrainingData, parse_sources
from pixart_jax.training.inputs.encoders import open_autoencoder, open_prompts
from pixart_jax.training.inputs.halves import SECOND, with_second


def open_shards(config: ConfigDict, spec: BatchSpec, share: Share) -> TrainingData:
    require = functools.partial(require_setting, config)
    sources = _sources(config)
    manifests = {key: check_sources(folders, spec) for key, folders in sources.items()}
    (directory, _), manifest = sources["data.source"][0], manifests["data.source"][0]
    if "data.pair_source" in sources:
        for (folder, _), pairs in zip(sources["data.pair_source"], manifests["data.pair_source"], strict=True):
            _check_pairs(config, folder, pairs, manifest)
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
    row, batches = with_second(
        config,
        spec,
        lambda half, given: make_iterator(given, half, seed=config.seed, num_workers=config.data.num_workers, **share),
        sources,
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
    sources = {}
    if config.eval.source.strip():
        sources["eval.source"] = parse_sources(config.eval.source, "eval.source")
    if not (config.data.online or config.data.source.strip() == SYNTHETIC):
        sources |= _sources(config)
    return [folder for found in sources.values() for folder, _ in found]


def _sources(config: ConfigDict) -> dict[str, list[tuple[str, float]]]:
    """`parse_sources` of data.source and of the second one, if there is one, by the setting."""
    texts = {key: flatten(config)[key] for key in ("data.source", *SECOND)}
    return {key: parse_sources(text, key) for key, text in texts.items() if key == "data.source" or text.strip()}


def _check_pairs(config: ConfigDict, folder: str, pairs: Manifest, manifest: Manifest) -> None:
    """Raises InputError unless a folder holds pairs, of latents and text features as the captions'."""
    require = functools.partial(require_setting, config)
    made = "python -m tools.teacher_pairs draws some"
    require(pairs.latent_kind == "drawn", "data.pair_source", f"{folder} holds pictures, but no noise; {made}")
    for field in ("autoencoder", "latent_scale", "text_encoder", "caption_cleaning"):
        theirs, ours = getattr(pairs, field), getattr(manifest, field)
        require(theirs == ours, "data.pair_source", f"{field} is {theirs!r} in {folder}, {ours!r} in the training data")


def own_decoder(directory: str, manifest: Manifest) -> Callable[[np.ndarray], np.ndarray]:
    """That of the autoencoder beside the shards."""
    try:
        return load_autoencoder(directory, manifest).decode
    except InputError as error:
        logging.warning("sample grids are drawn in false colours: %s", error)
        return false_colour
