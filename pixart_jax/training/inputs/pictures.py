"""Pictures that are encoded on the way."""

from __future__ import annotations

import functools

from absl import logging

from pixart_jax.config import ConfigDict, architecture, flatten, require_setting
from pixart_jax.data.buckets import RESOLUTIONS, training_buckets
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pictures import Pictures, open_pictures
from pixart_jax.encoding.control import open_control
from pixart_jax.encoding.online import OnlineBatches, OnlineItems, SpreadSamples
from pixart_jax.encoding.pictures import EncodedPictures
from pixart_jax.encoding.registry import record_encoders
from pixart_jax.tokens import DOWNSAMPLE
from pixart_jax.training.inputs.base import ENCODED_AT_A_TIME, Share, TrainingData
from pixart_jax.training.inputs.encoders import encoder_mesh, open_autoencoder, open_prompts, open_text_encoder
from pixart_jax.training.inputs.halves import with_second


def open_pictures_online(config: ConfigDict, spec: BatchSpec, share: Share) -> TrainingData:
    """Pictures that are encoded on the way."""
    require = functools.partial(require_setting, config)
    data, model, has_classes = config.data, config.model, spec.num_classes > 0
    resolutions = ", ".join(map(str, RESOLUTIONS))
    only_shards = "is for feature shards; with config.data.online=True set it to"
    require(bool(data.source.strip()), "data.source", "name pictures as tools.extract_features --source takes them")
    require(not data.group_buckets, "data.group_buckets", f"{only_shards} False")
    require(not data.pair_source.strip(), "data.pair_source", f"{only_shards} ''")
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
    has_prior = bool(data.prior_source.strip())
    require(
        not spec.control or data.control != "none",
        "data.control",
        "a ControlNet follows control pictures (config.adapter.kind); name what they are: canny, hed or given",
    )
    require(
        not has_prior or data.control == "none",
        "data.control",
        "the pictures of config.data.prior_source have no control pictures; set it to 'none'",
    )
    sources = {key: _open(config, key, spec) for key in ("data.source", *["data.prior_source"] * has_prior)}
    sources["data.source"], make_control = open_control(
        sources["data.source"],
        data.control,
        folder=data.control_dir or None,
        hed=data.hed or None,
        options=("config.data.control", "config.data.control_dir", "config.data.hed"),
    )
    autoencoder = open_autoencoder(config)
    text_encoder = None
    if not has_classes:
        text_encoder = open_text_encoder(config, spec, encoder_mesh(), keep=True)

    def items_of(pictures: Pictures) -> OnlineItems:
        return OnlineItems(
            EncodedPictures(
                pictures,
                [model.resolution],
                autoencoder=autoencoder,
                text_encoder=text_encoder,
                caption_cleaning=data.caption_cleaning,
                text_dtype=spec.text_dtype,
                about={},
                batch_size=ENCODED_AT_A_TIME,
                control=data.control,
                make_control=make_control,
            )
        )

    all_items = {key: items_of(pictures) for key, pictures in sources.items()}
    items = all_items["data.source"]
    row, batches = with_second(
        config, spec, lambda half, given: OnlineBatches(given, half, seed=config.seed, **share), all_items
    )
    return TrainingData(
        batches=batches,
        samples=SpreadSamples(items, _num_samples(config)),
        manifest=items.manifest,
        decode=autoencoder.decode,
        prompts=open_prompts(config, spec, items.manifest, None, text_encoder),
        keep_encoders=functools.partial(record_encoders, items.manifest),
        row=row,
    )


def _open(config: ConfigDict, key: str, spec: BatchSpec) -> Pictures:
    """The pictures that `config.data.source` or `config.data.prior_source` names."""
    data, require = config.data, functools.partial(require_setting, config)
    source = flatten(config)[key].strip()
    # The second source is a folder that tools.class_pictures wrote.
    fields = ("caption", "caption_column", "image_column") if key == "data.source" else ()
    pictures = open_pictures(source, data_dir=data.data_dir or None, **{name: data[name] for name in fields})
    if pictures.others:
        others = ", ".join(f"{count} {what}" for what, count in sorted(pictures.others.items()))
        logging.info("%s: files that are no items: %s", source, others)
    require(len(pictures) > 0, key, "holds no pictures")
    require(
        not spec.num_classes or len(pictures.class_names) == spec.num_classes,
        "model.num_classes",
        f"the pictures of {source} have {len(pictures.class_names)} classes",
    )
    return pictures


def _num_samples(config: ConfigDict) -> int:
    """How many the run looks at; one is needed for the shapes of a batch."""
    shown = config.sample.num_images if config.sample.every else 1
    return max(shown, config.eval.num_pictures if config.eval.metrics.strip() else 1)
