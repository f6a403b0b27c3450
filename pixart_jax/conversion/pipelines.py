"""A transformer with its text encoder, tokenizer and autoencoder: whether they fit, and the pipeline's folder of
diffusers that they make."""

from __future__ import annotations

import json
import math
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.conversion.encoders import TOKENIZER, EncoderSource, copy_tokenizer, write_reference_encoder
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.names.diffusers import diffusers_config
from pixart_jax.conversion.scheduler_samplers import how_to_call, predicting, scheduler_of
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.transfer import write_diffusers
from pixart_jax.errors import InputError
from pixart_jax.tokens import same_latent_scale

PIPELINES = {"alpha": "PixArtAlphaPipeline", "sigma": "PixArtSigmaPipeline"}

# The only sample_size at which diffusers' PixArtAlphaPipeline passes micro-conditions, and those of whose aspect ratios
# its pipelines know.
_MICRO_CONDITION_SIZE = 128
_BINNED_SIZES = {"alpha": (32, 64, 128), "sigma": (32, 64, 128, 256)}

_COMPONENTS = {
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

# The class's defaults, with which PixArt's own converter writes pipelines: 20 steps of DPM-Solver++ (2M) over the
# betas of training.
SCHEDULER: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "flow_shift": 1.0,
    "lambda_min_clipped": -math.inf,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "time_shift_type": "exponential",
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": False,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}


def check_fit(stored: StoredModel, encoders: Sequence[EncoderSource]) -> None:
    """Raises InputError, which names both sides, where the encoders that go beside a model are another one's."""
    model = stored.model
    pairs: list[tuple[str, float, str, Any, Callable[[Any, Any], bool]]]
    for encoder in encoders:
        config, where = encoder.config, encoder.path / "config.json"
        if encoder.kind == "text_encoder":
            pairs = [("text_dim", model.text_dim, "d_model", config["d_model"], operator.eq)]
        else:
            scale = encoder.model.scaling_factor
            pairs = [
                ("latent_channels", model.latent_channels, "latent_channels", config["latent_channels"], operator.eq),
                ("latent_scale", stored.latent_scale, "scaling_factor", scale, same_latent_scale),
            ]
        for ours, value, theirs, other, agree in pairs:
            if not agree(value, other):
                said = other if theirs in config else f"{other}, which it has because the file does not say"
                raise InputError(
                    f"the model's {ours} is {value}, but {where} has the {theirs} {said}: they do not belong together; "
                    "pass another --encoders, or --no-encoders"
                )


def missing_parts(encoders: Sequence[EncoderSource]) -> list[str]:
    """What a whole pipeline needs beside the transformer and is not there."""
    found = {encoder.kind for encoder in encoders}
    found |= {TOKENIZER for encoder in encoders if encoder.tokenizer}
    return [part for part in ("text_encoder", TOKENIZER, "vae") if part not in found]


def pipeline_family(stored: StoredModel, family: str | None = None) -> str:
    """The key of PIPELINES whose pipeline samples from a model.

    Args:
      family: what the user says; goes before the model's cleaning of captions and their length.

    Raises:
      InputError: nothing tells, or only the other pipeline can.
    """
    if stored.model.micro_condition:
        if family not in (None, "alpha"):
            raise InputError(
                f"{PIPELINES[family]} passes no micro-conditions, which this model takes; leave --family out"
            )
        return "alpha"
    lengths = {fields["max_text_tokens"]: name for name, fields in FAMILIES.items()}
    cleaning = stored.caption_cleaning if stored.caption_cleaning in FAMILIES else None
    told = family or cleaning or lengths.get(stored.model.max_text_tokens)
    if told is None:
        raise InputError(
            "nothing in the model tells whether PixArtAlphaPipeline or PixArtSigmaPipeline should sample from it; "
            "pass --family alpha or --family sigma"
        )
    return told


def limits(stored: StoredModel, encoders: Sequence[EncoderSource], family: str) -> list[str]:
    """What keeps `PIPELINES[family]` from sampling as it is called by default, or at all: one line each.

    Raises:
      InputError: a setting that diffusers' transformer does not have.
    """
    lines = []
    if problem := stored.provenance.get("ignored"):
        lines.append(f"the pipeline gets the scheduler of a PixArt, though its weights' own had {problem}")
    sample_size = diffusers_config(stored.model, stored.position_base, stored.position_scale)["sample_size"]
    if stored.model.micro_condition and sample_size != _MICRO_CONDITION_SIZE:
        lines.append(
            f"diffusers' PixArtAlphaPipeline passes micro-conditions only where sample_size is "
            f"{_MICRO_CONDITION_SIZE}; this model takes them and has {sample_size}, so it cannot be sampled there"
        )
    elif sample_size not in _BINNED_SIZES[family]:
        lines.append(
            f"diffusers' {PIPELINES[family]} knows no aspect ratios for a sample_size of {sample_size}: call it with "
            "use_resolution_binning=False"
        )
    if line := how_to_call(stored.sampler, family):
        lines.append(line)
    if any(encoder.bfloat16 for encoder in encoders):
        lines.append(
            "the text encoder is bfloat16 and the transformer float32, which diffusers does not bring together by "
            "itself: open the pipeline with from_pretrained(..., torch_dtype=torch.bfloat16), or torch.float32"
        )
    return lines


def write_pipeline(target: pathlib.Path, weights: ModelWeights, encoders: Sequence[EncoderSource], family: str) -> None:
    """A folder that `from_pretrained` of `PIPELINES[family]` opens.

    Args:
      encoders: with no `missing_parts`.

    Raises:
      InputError: the model has parameters or settings that diffusers does not, or an encoder is damaged.
      OSError: the disk is full, or cannot be written.
    """
    target.mkdir()
    write_diffusers(target / "transformer", weights)
    for encoder in encoders:
        write_reference_encoder(target / encoder.kind, encoder)
        if encoder.tokenizer:
            copy_tokenizer(encoder.tokenizer, target / TOKENIZER)
    (target / "scheduler").mkdir()
    target_of_model = weights.stored.target
    own = None if target_of_model.prediction == "flow" else scheduler_of(weights.stored.sampler)
    scheduler = predicting(own or SCHEDULER, target_of_model)
    _write_json(target / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": PIPELINES[family], **_COMPONENTS, "scheduler": ["diffusers", scheduler["_class_name"]]}
    _write_json(target / "model_index.json", index)


def _write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
