"""The encoders that a config names, opened and held against its model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.prompts import EncodeText, configured_prompts, prompt_samples
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.pretrained import Autoencoder, T5TextEncoder, local_mesh
from pixart_jax.encoding.registry import TextEncoder
from pixart_jax.tokens import same_latent_scale
from pixart_jax.training.inputs.base import ENCODED_AT_A_TIME


def open_autoencoder(config: ConfigDict, latent_scale: float | None = None) -> Autoencoder:
    """config.data.vae, which stays on the devices; `latent_scale` is that of latents that exist already."""
    autoencoder = Autoencoder(config.data.vae, mesh=encoder_mesh(), dtype=jnp.dtype(config.dtype), keep=True)
    require_setting(
        config,
        autoencoder.latent_channels == config.model.latent_channels,
        "model.latent_channels",
        f"the autoencoder {config.data.vae} (config.data.vae) has latents of {autoencoder.latent_channels} channels",
    )
    require_setting(
        config,
        latent_scale is None or same_latent_scale(autoencoder.latent_scale, latent_scale),
        "data.vae",
        f"its latent scale is {autoencoder.latent_scale:g}, that of the data {latent_scale or 0:g}, which another "
        "autoencoder made",
    )
    return autoencoder


def open_text_encoder(config: ConfigDict, spec: BatchSpec, mesh: jax.sharding.Mesh, *, keep: bool) -> T5TextEncoder:
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


def open_prompts(
    config: ConfigDict,
    spec: BatchSpec,
    manifest: Manifest,
    load_words: Callable[[], TextEncoder] | None,
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
        t5 = open_text_encoder(config, spec, local_mesh(), keep=False)
    encode: EncodeText
    if t5 is not None:
        encode = functools.partial(t5.encode_trimmed, batch_size=ENCODED_AT_A_TIME)
    else:
        assert load_words is not None  # Data that are encoded on the way have a T5, or classes and so no prompts.
        encode = functools.partial(_words_trimmed, load_words())
    return functools.partial(prompt_samples, prompts, encode, manifest, config.model.resolution)


def _words_trimmed(words: TextEncoder, captions: Sequence[str]) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(*words.encode(captions), strict=True)]


def encoder_mesh() -> jax.sharding.Mesh:
    """This process's devices, each with a copy of all parameters.

    Split parameters would have to be gathered, and devices that are told by two threads to gather, here the encoders'
    arrays and there the gradients, may each begin with another and wait for ever.
    """
    return make_mesh(devices=jax.local_devices())
