"""A caption-conditioned PixArt that starts at a class-conditional DiT's weights: the model around `reparameterize`."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.errors import InputError
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import check_seed
from pixart_jax.warm_start.fresh import fresh_params
from pixart_jax.warm_start.reparameterize import FRESH, ModulationError, modulation_error, reparameterize

# The paper's method and the closest on the whole: what any method's errors are to be compared with.
COMPARED = ("t500", "mean")


def with_captions(
    dit: ModelWeights,
    *,
    method: str = "t500",
    unconditional: str = "null",
    family: str | None = None,
    text_dim: int = 4096,
    max_text_tokens: int | None = None,
    seed: int = 0,
) -> tuple[ModelWeights, dict[str, ModulationError]]:
    """A PixArt with a DiT's blocks, which computes what the DiT computes without a class, whatever the caption.

    What a DiT lacks is initialised as training initialises it, so the null caption is random, as PixArt-α's is.

    Args:
      dit: of a class-conditional model with full adaLN; its arrays are read, and let go of as the format allows.
      method, unconditional: see `reparameterize`.
      family: a key of FAMILIES, whose latent scale, length and cleaning of captions, and sampler the PixArt takes; None
        keeps the DiT's latent scale, and takes the rest from α. Σ's latents are another autoencoder's, which the blocks
        have yet to learn.
      text_dim: width of the text features.
      max_text_tokens: longest caption; None goes by the family.
      seed: of the new parameters: they are those of a run with this seed.

    Returns:
      The PixArt, and the errors of its modulation by method: `method`, then those of COMPARED.

    Raises:
      InputError: the source is no such DiT, or an argument is none of the above.
    """
    stored = _with_captions(dit.stored, family, text_dim, max_text_tokens)
    check_seed(seed, "seed")
    target = reparameterization_target(stored.model, seed)
    arrays = {path: dit.read(path) for path in dit.paths}
    # They share the copied arrays, so three models cost little more than one.
    models = {
        name: reparameterize(arrays, target, method=name, unconditional=unconditional)
        for name in dict.fromkeys((method, *COMPARED))
    }
    errors = {name: modulation_error(arrays, model, unconditional=unconditional) for name, model in models.items()}
    params = models[method]
    how = f"from a DiT by {method}, unconditional {unconditional}; what it lacked from seed {seed}"
    stored = dataclasses.replace(stored, provenance=dit.stored.provenance | {"reparameterized": how})
    return ModelWeights(stored, list(params), params.pop), errors


def _with_captions(dit: StoredModel, family: str | None, text_dim: int, max_text_tokens: int | None) -> StoredModel:
    """The PixArt that a DiT becomes."""
    model = dit.model
    if not model.num_classes or model.adaln != "full" or model.micro_condition or model.kv_compress:
        raise InputError(
            "only a DiT can be re-parameterized: a model with classes, one modulation MLP per block (adaln full), and "
            "neither micro-conditions nor key/value compression"
        )
    told = FAMILIES[family or "alpha"]
    if max_text_tokens is None:
        max_text_tokens = told["max_text_tokens"]
    if text_dim < 1 or max_text_tokens < 1:
        raise InputError(f"text_dim={text_dim} and max_text_tokens={max_text_tokens} must be at least 1")
    return dataclasses.replace(
        dit,
        model=model.clone(num_classes=0, adaln="single", text_dim=text_dim, max_text_tokens=max_text_tokens),
        latent_scale=told["latent_scale"] if family else dit.latent_scale,
        null_text="stored",
        caption_cleaning=told["caption_cleaning"],
        sampler=told["sampler"],
    )


def reparameterization_target(model: PixArt, seed: int) -> dict[str, np.ndarray]:
    """Fresh parameters, where `reparameterize` takes them from there; elsewhere only their shapes, without memory."""
    arrays = fresh_params(model, seed, lambda path: path.startswith(FRESH))
    return {
        path: arrays.pop(path) if path in arrays else np.broadcast_to(np.float32(0), shape)
        for path, shape in parameter_shapes(model).items()
    }
