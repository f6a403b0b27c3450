"""What a pipeline is made of, from a converted directory or from a run."""

from __future__ import annotations

import pathlib
from typing import Any

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import build_model, load_config, position_base
from pixart_jax.conversion.stored import read_stored_model, restore_params
from pixart_jax.data.shards.manifest import ENCODERS, read_manifest
from pixart_jax.encoding.pretrained import LazyParams
from pixart_jax.encoding.registry import load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.params import abstract_params, kernels_as


def open_converted(directory: pathlib.Path, ema, mesh, dtype, keep: bool) -> dict[str, Any]:
    """Fields of a TextToImage from a directory that `tools.convert` wrote."""
    if ema is not None:
        raise InputError(f"{directory} holds one set of weights; leave out --ema and --no-ema")
    stored = read_stored_model(directory)
    abstract = kernels_as(dtype, abstract_params(stored.model, mesh))
    return {
        "model": stored.model.clone(dtype=dtype, attention=AttentionSpec(mesh=mesh)),
        "weights": LazyParams(lambda: restore_params(directory, abstract), keep=keep),
        "position_base": stored.position_base,
        "position_scale": stored.position_scale,
        "latent_scale": stored.latent_scale,
        "has_null_text": stored.null_text == "stored",
        "caption_cleaning": stored.caption_cleaning,
        "sampler": stored.sampler,
    }


def open_run(workdir: pathlib.Path, ema: bool, mesh, dtype, keep: bool, given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a TextToImage from the workdir of a run, with the encoders that it keeps.

    Args:
      given: directories of encoders by kind, or None; of those given, the fields are left to the caller.
    """
    config = load_config(workdir)
    # Whatever the run's machine computed attention with, this one may not have.
    model = build_model(config).clone(dtype=dtype, attention=AttentionSpec(mesh=mesh))
    encoders = workdir / ENCODERS
    manifest = read_manifest(encoders, may_be_empty=True)
    fields = {}
    if not given["text_encoder"] and not model.num_classes:
        text_encoder = load_text_encoder(encoders, manifest)
        fields["encode_text"] = lambda captions, progress: text_encoder.encode(captions)
    if not given["vae"]:
        autoencoder = load_autoencoder(encoders, manifest)
        fields["decode_latents"] = lambda latents, progress: autoencoder.decode(latents)
    checkpoints = Checkpoints(workdir, read_only=True)
    checkpoints.require_step()
    abstract = kernels_as(dtype, abstract_params(model, mesh))

    return fields | {
        "model": model,
        "weights": LazyParams(lambda: checkpoints.restore_params(abstract, ema=ema), keep=keep),
        "position_base": position_base(config),
        "position_scale": config.model.position_scale,
        "latent_scale": manifest.latent_scale,
        "has_null_text": True,
        "caption_cleaning": manifest.caption_cleaning,
        "sampler": config.sample.sampler,
        "num_steps": config.sample.num_steps,
        "guidance_scale": config.sample.guidance_scale,
    }
