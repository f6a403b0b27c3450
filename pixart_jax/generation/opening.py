"""What a pipeline is made of, from a converted directory or from a run."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from pixart_jax.adapters.adapter import Params
from pixart_jax.adapters.helpers import HELPERS
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import (
    build_model,
    guidance_of_config,
    load_config,
    path_drop_of,
    position_base,
    takes_guidance,
    target_of,
)
from pixart_jax.conversion.runs import require_evaluated
from pixart_jax.conversion.stored import read_stored_model, restore_params
from pixart_jax.data.decoding import to_float
from pixart_jax.data.shards.manifest import ENCODERS, MANIFEST_FILE, Manifest, read_manifest
from pixart_jax.devices.sharding import MeshSpec
from pixart_jax.encoding.pretrained import Autoencoder, LazyParams, T5TextEncoder, local_mesh
from pixart_jax.encoding.registry import kept_encoders, load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.generation.adaptation import CONTROL_IS_WHOLE, CONTROL_NEEDS, DORA_IS_WHOLE
from pixart_jax.generation.adapted_run import open_adapted_run
from pixart_jax.generation.other_weights import refuse_other_weights
from pixart_jax.generation.parts import Parts
from pixart_jax.generation.placing import drawing_mesh
from pixart_jax.generation.run_encoders import encoders_of_run
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.layers import Dtype
from pixart_jax.models.params import abstract_params, kernels_as
from pixart_jax.models.pixart import PixArt
from pixart_jax.tokens import same_latent_scale


def open_parts(
    directory: pathlib.Path,
    *,
    ema: bool | None,
    text_encoder: str | pathlib.Path | None,
    vae: str | pathlib.Path | None,
    dtype: Dtype,
    keep_loaded: bool,
    tile_size: int,
    int8_text_encoder: bool,
    mesh: MeshSpec | None,
) -> Parts:
    """What a TextToImage is made of; arguments and errors are those of `TextToImage.from_checkpoint`."""
    devices = drawing_mesh(mesh or MeshSpec(), jax.local_devices())
    if (directory / "model.json").exists():
        fields = open_converted(directory, ema, devices, dtype, keep_loaded)
        found, own = _beside(directory, {"text_encoder": text_encoder, "vae": vae})
        fields |= own
        text_encoder, vae = found["text_encoder"], found["vae"]
        for option, part in found.items():
            if part and not pathlib.Path(part).is_dir():
                raise InputError(
                    f"{part} does not exist: the weights came without it; convert one with tools.convert and name "
                    f"its directory (--{option.replace('_', '-')})"
                )
    else:
        refuse_other_weights(directory)
        given = {"text_encoder": text_encoder, "vae": vae}
        fields, found = open_run(directory, ema is not False, devices, dtype, keep_loaded, given)
        text_encoder, vae = found["text_encoder"], found["vae"]
    model: PixArt = fields["model"]
    if model.num_classes:
        raise InputError(f"{directory}: the model knows {model.num_classes} classes and no captions")
    fields["encoders"] = {
        kind: pathlib.Path(folder or directory / ENCODERS)
        for kind, folder in (("text_encoder", text_encoder), ("vae", vae))
    }
    if int8_text_encoder and not text_encoder:
        raise InputError(f"{directory}: its text encoder is no T5, and has no int8; leave out --int8-text-encoder")
    if text_encoder:
        encoder = T5TextEncoder(
            text_encoder,
            max_tokens=model.max_text_tokens,
            mesh=local_mesh(),
            dtype=dtype,
            keep=keep_loaded,
            int8=int8_text_encoder,
        )
        fields["encode_text"] = encoder.encode
        if encoder.dim != model.text_dim:
            raise InputError(
                f"{text_encoder} gives features {encoder.dim} wide, the model of {directory} takes {model.text_dim}"
            )
    if vae:
        autoencoder = Autoencoder(vae, mesh=devices, tile_size=tile_size, dtype=dtype, keep=keep_loaded)
        fields["decode_latents"] = autoencoder.decode_each
        fields["draw_latents"] = functools.partial(autoencoder.decode_each, as_uint8=True)
        fields["encode_pictures"] = lambda pictures: autoencoder.encode(pictures, 1)
        if autoencoder.latent_channels != model.latent_channels:
            raise InputError(
                f"{vae} has latents of {autoencoder.latent_channels} channels, the model of {directory} of "
                f"{model.latent_channels}"
            )
        if not same_latent_scale(autoencoder.latent_scale, fields["latent_scale"]):
            raise InputError(
                f"{vae} is another autoencoder than that of {directory}: its latent scale is "
                f"{autoencoder.latent_scale:g}, the model's {fields['latent_scale']:g} (0.18215 is Stable "
                "Diffusion's, for PixArt-α; 0.13025 SDXL's, for PixArt-Σ)"
            )
    return Parts(name=str(directory), mesh=devices, **fields)


def _beside(directory: pathlib.Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the encoders of a converted model are, by kind, and fields of `Parts` of those that a run kept; None in
    place of the folders of these."""
    kept: list[str] = []
    encoders = directory / ENCODERS
    if (encoders / MANIFEST_FILE).exists():
        manifest = read_manifest(encoders, may_be_empty=True)
        own = kept_encoders(manifest)
        kept = [kind for kind, is_own in own.items() if is_own and not given[kind] and not (directory / kind).is_dir()]
    found = {kind: None if kind in kept else given[kind] or directory / kind for kind in given}
    return found, _kept_encoders(encoders, manifest, kept) if kept else {}


def _kept_encoders(encoders: pathlib.Path, manifest: Manifest, kinds: Iterable[str]) -> dict[str, Any]:
    """Fields of `Parts` from the files of a data set's own encoders."""
    fields: dict[str, Any] = {}
    if "text_encoder" in kinds:
        text_encoder = load_text_encoder(encoders, manifest)
        fields["encode_text"] = lambda captions, progress: text_encoder.encode(captions)
    if "vae" in kinds:
        autoencoder = load_autoencoder(encoders, manifest)
        fields["decode_latents"] = lambda latents: iter(autoencoder.decode(latents))
        fields["encode_pictures"] = lambda pictures: _certain(autoencoder.encode(to_float(pictures)))
    return fields


def _certain(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of latents that are no distribution."""
    return latents, np.zeros_like(latents)


class ReadOnce:
    """Weights that are read from disk once, and placed from the host's memory after that.

    A run that goes on may have saved others meanwhile: all pictures are drawn with the same.

    Args:
      read: gives them, on devices.
      keep: whoever asks leaves them there, and will not ask again.
    """

    def __init__(self, read: Callable[[], Params], keep: bool):
        self._read, self._keep = read, keep
        self._copy: tuple[Params, Params] | None = None

    def __call__(self) -> Params:
        if self._copy is not None:
            return jax.tree.map(lambda array, sharding: jax.device_put(array, sharding), *self._copy)
        params = self._read()
        if not self._keep:
            self._copy = jax.device_get(params), jax.tree.map(lambda leaf: leaf.sharding, params)
        return params


def open_converted(directory: pathlib.Path, ema, mesh, dtype, keep: bool) -> dict[str, Any]:
    """Fields of `Parts` from a directory that `tools.convert` wrote."""
    if ema is not None:
        raise InputError(f"{directory} holds one set of weights; leave out --ema and --no-ema")
    stored = read_stored_model(directory)
    abstract = kernels_as(dtype, abstract_params(stored.model, mesh))
    model = stored.model.clone(dtype=dtype, attention=AttentionSpec(mesh=mesh))
    return {
        "model": model,
        "weights": LazyParams(lambda: restore_params(directory, abstract), keep=keep),
        "position_base": stored.position_base,
        "position_scale": stored.position_scale,
        "latent_scale": stored.latent_scale,
        "has_null_text": stored.null_text == "stored",
        "caption_cleaning": stored.caption_cleaning,
        "target": stored.target,
        "sampler": stored.sampler,
        "num_steps": stored.num_steps,
        "guidance": stored.guidance,
        "path_drop": stored.path_drop,
    }


def open_run(
    workdir: pathlib.Path, ema: bool, mesh, dtype, keep: bool, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `Parts` from the workdir of a run, with the encoders that it keeps, and the folders of the others.

    Args:
      given: directories of encoders by kind, or None.

    Returns:
      The fields, and directories by kind, or None, of encoders whose fields are left to the caller.
    """
    config = load_config(workdir)
    require_evaluated(workdir, config, ema=ema)
    # Whatever the run's machine computed attention with, this one may not have.
    model = build_model(config).clone(dtype=dtype, residual_dtype=None, attention=AttentionSpec(mesh=mesh))
    encoders = workdir / ENCODERS
    manifest = read_manifest(encoders, may_be_empty=True)
    found = given if model.num_classes else encoders_of_run(workdir, config, manifest, given)
    own = [kind for kind in found if not found[kind] and not (kind == "text_encoder" and model.num_classes)]
    fields = _kept_encoders(encoders, manifest, own)
    checkpoints = Checkpoints(workdir, read_only=True)
    checkpoints.require_step()
    read: Callable[[], Params]
    if config.adapter.kind == "full" and not takes_guidance(config):
        abstract = kernels_as(dtype, abstract_params(model, mesh))
        read = functools.partial(checkpoints.restore_params, abstract, ema=ema, leaving=HELPERS)
    else:
        fields["over"], read = open_adapted_run(workdir, config, manifest, model, mesh, checkpoints, ema=ema)
        if config.adapter.kind == "controlnet":
            fields |= {"needs": CONTROL_NEEDS, "whole": CONTROL_IS_WHOLE}
        if config.adapter.kind == "lora" and config.adapter.lora.dora:
            fields["whole"] = DORA_IS_WHOLE

    fields |= {
        "model": model,
        "weights": LazyParams(ReadOnce(read, keep), keep=keep),
        "step": lambda: checkpoints.latest_step,
        "position_base": position_base(config),
        "position_scale": config.model.position_scale,
        "latent_scale": manifest.latent_scale,
        "has_null_text": True,
        "caption_cleaning": manifest.caption_cleaning,
        "target": target_of(config),
        "sampler": config.sample.sampler,
        "num_steps": config.sample.num_steps,
        "guidance_scale": config.sample.guidance_scale,
        "guidance": guidance_of_config(config),
        "path_drop": path_drop_of(config),
    }
    return fields, found
