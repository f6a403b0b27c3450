"""The pictures that a config evaluates on."""

from __future__ import annotations

from pixart_jax.config import ConfigDict, require_setting
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.pipeline import check_sources
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.evaluators.validation import HeldOut
from pixart_jax.training.inputs.base import parse_sources


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
