"""Pictures that are encoded on the way."""

from __future__ import annotations

import functools

from pixart_jax.config import ConfigDict, architecture, require_setting
from pixart_jax.data.buckets import RESOLUTIONS, training_buckets
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pictures import open_pictures
from pixart_jax.encoding.online import OnlineBatches, OnlineItems, SpreadSamples
from pixart_jax.encoding.pictures import EncodedPictures
from pixart_jax.encoding.registry import record_encoders
from pixart_jax.tokens import DOWNSAMPLE
from pixart_jax.training.inputs.base import ENCODED_AT_A_TIME, Share, TrainingData
from pixart_jax.training.inputs.encoders import encoder_mesh, open_autoencoder, open_prompts, open_text_encoder


def open_pictures_online(config: ConfigDict, spec: BatchSpec, share: Share) -> TrainingData:
    """Pictures that are encoded on the way."""
    require = functools.partial(require_setting, config)
    data, model, has_classes = config.data, config.model, spec.num_classes > 0
    resolutions = ", ".join(map(str, RESOLUTIONS))
    only_shards = "is for feature shards; with config.data.online=True set it to"
    require(bool(data.source.strip()), "data.source", "name pictures as tools.extract_features --source takes them")
    require(not data.group_buckets, "data.group_buckets", f"{only_shards} False")
    require(data.num_workers == 0, "data.num_workers", f"{only_shards} 0: pictures are decoded in threads")
    require(not config.sample.retrieval_captions, "sample.retrieval_captions", f"{only_shards} 0")
    require(model.resolution in RESOLUTIONS, "model.resolution", f"has no aspect-ratio buckets; one of {resolutions}")
    unit = DOWNSAMPLE * spec.patch_size * spec.block_ratio
    fits = all(side % unit == 0 for b in training_buckets(model.resolution) for side in (b.height, b.width))
    sides = f"the sides of the buckets at {model.resolution} px are no multiples of {unit} px"
    require(fits or spec.block_ratio == 1, "model.kv_compress_ratio", f"{sides}; set it to 1, or raise the resolution")
    require(
        fits, "model.resolution", f"{sides}, of which a token has {DOWNSAMPLE * architecture(config)['patch_size']}"
    )
    require(bool(data.vae), "data.vae", "name an autoencoder's directory that tools.convert wrote")
    if has_classes:
        for key, unset in (("text_encoder", ""), ("caption_cleaning", "none")):
            require(
                data[key] == unset,
                f"data.{key}",
                f"a model of {spec.num_classes} classes reads labels, no captions; set it to {unset!r}",
            )
    else:
        require(
            bool(data.text_encoder), "data.text_encoder", "name a text encoder's directory that tools.convert wrote"
        )
    pictures = open_pictures(data.source.strip(), data_dir=data.data_dir or None)
    require(len(pictures) > 0, "data.source", "holds no pictures")
    require(
        not has_classes or len(pictures.class_names) == spec.num_classes,
        "model.num_classes",
        f"the pictures of {data.source} have {len(pictures.class_names)} classes",
    )
    autoencoder = open_autoencoder(config)
    text_encoder = None
    if not has_classes:
        text_encoder = open_text_encoder(config, spec, encoder_mesh(), keep=True)
    encoder = EncodedPictures(
        pictures,
        [model.resolution],
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        caption_cleaning=data.caption_cleaning,
        text_dtype=spec.text_dtype,
        about={},
        batch_size=ENCODED_AT_A_TIME,
    )
    items = OnlineItems(encoder)
    return TrainingData(
        batches=OnlineBatches(items, spec, seed=config.seed, **share),
        # One is needed for the shapes of a batch.
        samples=SpreadSamples(items, config.sample.num_images if config.sample.every else 1),
        manifest=items.manifest,
        decode=autoencoder.decode,
        prompts=open_prompts(config, spec, items.manifest, None, text_encoder),
        keep_encoders=functools.partial(record_encoders, items.manifest),
    )
