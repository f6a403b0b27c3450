"""What a config says about the data: opened, checked, and the same to the loop whatever kind it is."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pixart_jax.config import ConfigDict, architecture, build_model, position_base, require_setting
from pixart_jax.data.buckets import RESOLUTIONS, training_buckets
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.pictures import open_pictures
from pixart_jax.data.pipeline import BatchSpec, SampleSet, check_sources, make_iterator, mix_samples
from pixart_jax.data.prompts import configured_prompts, prompt_samples
from pixart_jax.data.shards.feature_shards import Manifest, Sample, ShardReader
from pixart_jax.data.shards.manifest import write_manifest
from pixart_jax.data.synthetic import SyntheticSamples
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.online import OnlineBatches, OnlineItems, SpreadSamples
from pixart_jax.encoding.pictures import EncodedPictures
from pixart_jax.encoding.pretrained import Autoencoder, T5TextEncoder, local_mesh
from pixart_jax.encoding.registry import (
    LINEAR_AUTOENCODER_FILE,
    copy_encoders,
    load_autoencoder,
    load_text_encoder,
    record_encoders,
)
from pixart_jax.errors import InputError
from pixart_jax.evaluators.validation import HeldOut
from pixart_jax.figures.images import false_colour
from pixart_jax.models.word_encoder import WordEncoder
from pixart_jax.tokens import DOWNSAMPLE

# The `data.source` that is no directory. One of this name is "./synthetic".
SYNTHETIC = "synthetic"

# Pictures, and captions, that are encoded at a time in online training. Each bucket's last few are filled up to it, so
# that it should be far below a batch, which mixes buckets.
ENCODED_AT_A_TIME = 4


class Batches(Protocol):
    """Endless batches; see `data.pipeline.make_iterator` for what they hold."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run trains on. Nothing is read before it is asked for.

    Attributes:
      batches: this process's.
      samples: the data set, or some of it, for pictures of what was learnt; at least one.
      manifest: of the samples.
      decode: unscaled latents f32[1, h, w, C] to pictures f32[1, H, W, 3] in about [-1, 1].
      prompts: config.sample.prompts as samples without pictures, encoded when it is called; None without prompts.
      keep_encoders: puts into a folder what sampling has to know of the encoders; raises InputError if the run there
        started with others.
    """

    batches: Batches
    samples: Sequence[Sample]
    manifest: Manifest
    decode: Callable[[np.ndarray], np.ndarray]
    prompts: Callable[[], list[Sample]] | None
    keep_encoders: Callable[[pathlib.Path], None]


def open_data(config: ConfigDict, spec: BatchSpec, *, process_index: int = 0, process_count: int = 1) -> TrainingData:
    """The data that a config names, checked against its model.

    Raises:
      InputError: names the config key or the directory, and the cure; before anything is encoded.
    """
    processes = {"process_index": process_index, "process_count": process_count}
    if config.data.online:
        return _open_pictures(config, spec, processes)
    require = functools.partial(require_setting, config)
    for key, unset in (("caption_cleaning", "none"), ("data_dir", "")):
        require(config.data[key] == unset, f"data.{key}", f"only config.data.online=True heeds it; set it to {unset!r}")
    require(
        not config.data.text_encoder or config.sample.prompts,
        "data.text_encoder",
        "only config.data.online=True and config.sample.prompts heed it; set it to ''",
    )
    is_synthetic = config.data.source.strip() == SYNTHETIC
    data = (_open_synthetic if is_synthetic else _open_shards)(config, spec, processes)
    sizes = len(data.manifest.bucket_histogram)
    require(
        not config.sample.retrieval_captions or sizes == 1,
        "sample.retrieval_captions",
        f"pictures are compared pixel by pixel, and {config.data.source} holds {sizes} sizes; set it to 0",
    )
    return data


def _open_shards(config: ConfigDict, spec: BatchSpec, processes: dict[str, int]) -> TrainingData:
    require = functools.partial(require_setting, config)
    sources = parse_sources(config.data.source)
    manifests = check_sources(sources, spec)
    (directory, _), manifest = sources[0], manifests[0]
    if config.data.vae:
        require(
            manifest.autoencoder == "vae",
            "data.vae",
            f"{directory} was made with the autoencoder \"{manifest.autoencoder}\", which is another; set it to ''",
        )
        decode = _open_autoencoder(config, manifest.latent_scale).decode
    else:
        decode = _own_decoder(directory, manifest)
    return TrainingData(
        batches=make_iterator(sources, spec, seed=config.seed, num_workers=config.data.num_workers, **processes),
        samples=ShardReader(directory),
        manifest=manifest,
        decode=decode,
        prompts=_open_prompts(config, spec, manifest, lambda: load_text_encoder(directory, manifest)),
        keep_encoders=functools.partial(copy_encoders, directory, manifest),
    )


def _open_synthetic(config: ConfigDict, spec: BatchSpec, processes: dict[str, int]) -> TrainingData:
    """Random numbers, with encoders of their own."""
    require_setting(
        config, not config.data.vae, "data.vae", "synthetic data have an autoencoder of their own; set it to ''"
    )
    samples = SyntheticSamples(spec, config.model.resolution)
    return TrainingData(
        batches=mix_samples(
            [SampleSet(samples, samples.manifest, samples.read_buckets)],
            spec,
            seed=config.seed,
            num_workers=config.data.num_workers,
            **processes,
        ),
        samples=samples,
        manifest=samples.manifest,
        decode=samples.autoencoder.decode,
        prompts=_open_prompts(config, spec, samples.manifest, lambda: samples.text_encoder),
        keep_encoders=functools.partial(_keep_synthetic_encoders, samples),
    )


def _keep_synthetic_encoders(samples: SyntheticSamples, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        samples.autoencoder.save(directory / LINEAR_AUTOENCODER_FILE)
        if not samples.spec.num_classes:
            samples.text_encoder.save(directory)
        # The encoders outlive the samples, which are nowhere.
        write_manifest(directory, dataclasses.replace(samples.manifest, num_samples=0, bucket_histogram={}))
        copy_encoders(directory, samples.manifest, target)


def shard_folders(config: ConfigDict) -> list[str]:
    """The folders of feature shards that a config reads."""
    sources = [(config.eval.source, "eval.source")] if config.eval.source.strip() else []
    if not (config.data.online or config.data.source.strip() == SYNTHETIC):
        sources.append((config.data.source, "data.source"))
    return [folder for text, key in sources for folder, _ in parse_sources(text, key)]


def open_held_out(config: ConfigDict, spec: BatchSpec, manifest: Manifest) -> HeldOut | None:
    """The pictures that a config evaluates on; None without config.eval.source.

    Args:
      manifest: of the training data, whose latents and text features these must be.

    Raises:
      InputError: names the directory or the config key, and the cure.
    """
    if not config.eval.source.strip():
        return None
    sources = parse_sources(config.eval.source, "eval.source")
    manifests = check_sources(sources, spec)
    for (directory, weight), held_out in zip(sources, manifests, strict=True):
        require_setting(config, weight == 1, "eval.source", "pictures are spread evenly; leave out the weights")
        encoded = ("autoencoder", "latent_scale") + (() if spec.num_classes else ("text_encoder", "caption_cleaning"))
        for field in encoded:
            theirs, ours = getattr(held_out, field), getattr(manifest, field)
            require_setting(
                config,
                theirs == ours,
                "eval.source",
                f"{field} is {theirs!r} in {directory}, {ours!r} in the training data; encode it as they were",
            )
    samples = [ShardReader(directory) for directory, _ in sources]
    return HeldOut([*zip(samples, manifests, strict=True)], spec, config.eval.num_samples)


def eval_batch_size(config: ConfigDict, held_out: HeldOut, num_shards: int) -> int:
    """Pictures over all devices at a time, in that many parts: as many as a training step works on, which is known to
    fit."""
    needed = -(-len(held_out.indices) // num_shards) * num_shards
    return min(needed, config.data.batch_size // config.train.accumulation_steps)


def _own_decoder(directory: str, manifest: Manifest) -> Callable[[np.ndarray], np.ndarray]:
    """That of the autoencoder beside the shards."""
    try:
        return load_autoencoder(directory, manifest).decode
    except InputError as error:
        logging.warning("sample grids are drawn in false colours: %s", error)
        return false_colour


def _open_pictures(config: ConfigDict, spec: BatchSpec, processes: dict[str, int]) -> TrainingData:
    """Pictures that are encoded on the way."""
    require = functools.partial(require_setting, config)
    data, model, has_classes = config.data, config.model, spec.num_classes > 0
    resolutions, choices = ", ".join(map(str, RESOLUTIONS)), ", ".join(CLEANING)
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
    require(data.caption_cleaning in CLEANING, "data.caption_cleaning", f"must be one of {choices}")
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
    autoencoder = _open_autoencoder(config)
    text_encoder = None
    if not has_classes:
        text_encoder = _open_text_encoder(config, spec, _encoder_mesh(), keep=True)
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
        batches=OnlineBatches(items, spec, seed=config.seed, **processes),
        # One is needed for the shapes of a batch.
        samples=SpreadSamples(items, config.sample.num_images if config.sample.every else 1),
        manifest=items.manifest,
        decode=autoencoder.decode,
        prompts=_open_prompts(config, spec, items.manifest, None, text_encoder),
        keep_encoders=functools.partial(record_encoders, items.manifest),
    )


def _open_autoencoder(config: ConfigDict, latent_scale: float | None = None) -> Autoencoder:
    """config.data.vae, which stays on the devices; `latent_scale` is that of latents that exist already."""
    autoencoder = Autoencoder(config.data.vae, mesh=_encoder_mesh(), dtype=jnp.dtype(config.dtype), keep=True)
    require_setting(
        config,
        autoencoder.latent_channels == config.model.latent_channels,
        "model.latent_channels",
        f"the autoencoder {config.data.vae} (config.data.vae) has latents of {autoencoder.latent_channels} channels",
    )
    require_setting(
        config,
        latent_scale is None or abs(autoencoder.latent_scale / latent_scale - 1) < 1e-6,
        "data.vae",
        f"its latent scale is {autoencoder.latent_scale:g}, that of the data {latent_scale or 0:g}, which another "
        "autoencoder made",
    )
    return autoencoder


def _open_text_encoder(config: ConfigDict, spec: BatchSpec, mesh: jax.sharding.Mesh, *, keep: bool) -> T5TextEncoder:
    """config.data.text_encoder."""
    encoder = T5TextEncoder(
        config.data.text_encoder, max_tokens=spec.max_text_tokens, mesh=mesh, dtype=jnp.dtype(config.dtype), keep=keep
    )
    require_setting(
        config,
        encoder.dim == spec.text_dim,
        "model.text_dim",
        f"the text encoder {config.data.text_encoder} (config.data.text_encoder) gives features {encoder.dim} wide",
    )
    return encoder


def _open_prompts(
    config: ConfigDict,
    spec: BatchSpec,
    manifest: Manifest,
    load_words: Callable[[], WordEncoder] | None,
    t5: T5TextEncoder | None = None,
) -> Callable[[], list[Sample]] | None:
    """See `TrainingData.prompts`.

    Args:
      manifest: of the data that the run trains on.
      load_words: gives the data's own text encoder.
      t5: that of the run, if it has one; else config.data.text_encoder, whose weights are gone after use.
    """
    prompts = configured_prompts(config.sample.prompts)
    if not prompts:
        return None
    if t5 is None and config.data.text_encoder:
        require_setting(
            config,
            manifest.text_encoder == "t5",
            "data.text_encoder",
            f"the data were made with the text encoder \"{manifest.text_encoder}\", which is another; set it to ''",
        )
        # Nothing else runs on the devices yet: the largest part of the pipeline may be split over them.
        t5 = _open_text_encoder(config, spec, local_mesh(), keep=False)
    if t5 is None:
        words = load_words()

        def encode(captions):
            return [row[:length] for row, length in zip(*words.encode(captions), strict=True)]
    else:
        encode = functools.partial(t5.encode_trimmed, batch_size=ENCODED_AT_A_TIME)
    return functools.partial(prompt_samples, prompts, encode, manifest, config.model.resolution)


def _encoder_mesh() -> jax.sharding.Mesh:
    """This process's devices, each with a copy of all parameters.

    Split parameters would have to be gathered, and devices that are told by two threads to gather, here the encoders'
    arrays and there the gradients, may each begin with another and wait for ever.
    """
    return make_mesh(devices=jax.local_devices())


def parse_sources(text: str, key: str = "data.source") -> list[tuple[str, float]]:
    """ "DIR" or "DIR:WEIGHT,DIR:WEIGHT" as (directory, weight) pairs; `key` is the setting it comes from."""
    sources = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        directory, _, weight = part.rpartition(":")
        try:
            sources.append((directory, float(weight)) if directory else (part, 1.0))
        except ValueError:
            sources.append((part, 1.0))  # The colon belongs to the path.
    if not sources:
        raise InputError(f"config.{key} is empty: name a directory of feature shards, e.g. data/quickstart")
    return sources


def batch_spec(config: ConfigDict, process_count: int = 1) -> BatchSpec:
    """The shapes of this process's part of a batch."""
    model = build_model(config)
    base = position_base(config)
    return BatchSpec(
        batch_size=config.data.batch_size // process_count,
        num_tokens=base**2,
        patch_size=model.patch_size,
        latent_channels=model.latent_channels,
        position_base=base,
        position_scale=config.model.position_scale,
        max_text_tokens=model.max_text_tokens,
        text_dim=model.text_dim,
        text_dtype="float32" if config.dtype == "float32" else "bfloat16",
        num_classes=model.num_classes,
        block_ratio=config.model.kv_compress_ratio,
        text_drop_prob=config.data.text_drop_prob,
        group_buckets=config.data.group_buckets,
    )
