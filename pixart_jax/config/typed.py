"""The typed objects that a config describes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Adapter
from pixart_jax.adapters.aligned import Aligned
from pixart_jax.adapters.controlnet import Controlled
from pixart_jax.adapters.followed import FAKE, Followed
from pixart_jax.adapters.full import Full
from pixart_jax.adapters.guided import Guided
from pixart_jax.adapters.helpers import HELPERS
from pixart_jax.adapters.layers import REFERENCE_TARGETS, require_patterns
from pixart_jax.adapters.lora import Lora, LoraSpec
from pixart_jax.adapters.taught import Taught
from pixart_jax.adapters.weighed import UNCERTAINTY, Weighed
from pixart_jax.config.declaration import listed
from pixart_jax.config.defaults import DISTILLED, ConfigDict
from pixart_jax.config.processes import timesteps_of
from pixart_jax.devices.sharding import MeshSpec
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.controlnet import ControlNet
from pixart_jax.models.params import apply_of
from pixart_jax.models.path_drop import Stretch
from pixart_jax.models.pixart import SIZES, PixArt, Size
from pixart_jax.models.remat import AUTO
from pixart_jax.models.routing import PATH_DROP, ROUTE_KEYS, Route, forward, routed
from pixart_jax.objectives.alignment import aligned_loss
from pixart_jax.objectives.consistency import consistency_loss
from pixart_jax.objectives.denoising import diffusion_loss, without_variance
from pixart_jax.objectives.distribution_matching import Distance, DistributionMatching, latent_distance
from pixart_jax.objectives.objective import Gradients, LossFn, descend, with_keys
from pixart_jax.objectives.prior_preservation import prior_preservation_loss
from pixart_jax.objectives.uncertainty import uncertain_loss
from pixart_jax.optimizers import OptimizerSpec, build_optimizer
from pixart_jax.optimizers.came import CameSpec
from pixart_jax.optimizers.muon import MuonSpec
from pixart_jax.optimizers.power_averages import keeping_averages
from pixart_jax.optimizers.schedule_free import settled
from pixart_jax.optimizers.two_networks import in_turns, two_networks
from pixart_jax.samplers import guidance_of
from pixart_jax.samplers.program import EMBEDDED
from pixart_jax.tokens import DOWNSAMPLE


def architecture(config: ConfigDict) -> Size:
    """Those of the named size, with the config's own where it sets them."""
    size = SIZES[config.model.size]
    return Size(
        hidden_size=config.model.hidden_size or size["hidden_size"],
        depth=config.model.depth or size["depth"],
        num_heads=config.model.num_heads or size["num_heads"],
        patch_size=config.model.patch_size or size["patch_size"],
    )


def build_model(config: ConfigDict, mesh: Mesh | None = None) -> PixArt:
    """The model a config describes, to be compiled for a mesh; None where only its architecture is wanted."""
    fields = architecture(config)
    ratio, first = config.model.kv_compress_ratio, config.model.kv_compress_from
    return PixArt(
        **fields,
        latent_channels=config.model.latent_channels,
        text_dim=config.model.text_dim,
        max_text_tokens=config.model.max_text_tokens,
        num_classes=config.model.num_classes,
        micro_condition=config.model.micro_condition,
        kv_compress=tuple(ratio if i >= first else 1 for i in range(fields["depth"])) if ratio > 1 else (),
        kv_sampling=config.model.kv_sampling if ratio > 1 else "conv",
        qk_norm=config.model.qk_norm,
        adaln=config.model.adaln,
        learn_sigma=config.model.learn_sigma,
        # Undecided, here and below, it is drawn with, or trained on a CPU: `training.memory.settle`.
        remat="none" if config.model.remat == AUTO else config.model.remat,
        attention=AttentionSpec(config.model.attention, mesh),
        dtype=jnp.dtype(config.dtype),
        residual_dtype=jnp.dtype(config.residual_dtype) if config.residual_dtype else None,
        scan_unroll=max(config.model.scan_unroll, 1),
    )


def build_route(config: ConfigDict) -> Route | None:
    """Which tokens pass which blocks by; None where none do.

    With a ratio of 0 SPRINT's form drops the path all the same, as in its authors' last stage on all tokens.
    """
    own = config.model.route
    last = own.last + (architecture(config)["depth"] if own.last < 0 else 0)
    path_drop = PATH_DROP if own.form == "sprint" else 0.0
    return Route(own.ratio, own.first, last, path_drop) if own.ratio or path_drop else None


def path_drop_of(config: ConfigDict) -> Stretch | None:
    """The blocks that its model learns to do without, for guidance by that (`models.path_drop`); or None."""
    route = build_route(config)
    return route.dropped if route else None


def build_adapter(config: ConfigDict, model: PixArt) -> Adapter:
    """What of the model a config trains."""
    route = build_route(config)
    apply = routed(model, route) if route else apply_of(model)
    if config.adapter.kind == "lora":
        return _guided(config, model, Lora(apply, lora_spec(config), jnp.dtype(config.dtype)))
    if config.adapter.kind == "controlnet":
        controlnet = ControlNet(model, config.adapter.controlnet.num_copies)
        return Controlled(controlnet, apply_of(model), jnp.dtype(config.dtype))
    if config.objective.kind == "consistency":
        return _guided(config, model, Taught(apply_of(model), jnp.dtype(config.dtype)))
    if config.objective.kind == "distribution_matching":
        return Followed(apply_of(model), jnp.dtype(config.dtype))
    if config.align.weight:
        widths = (model.hidden_size, config.align.width, config.align.dim)
        looked_at = functools.partial(forward, model, route=route, tap=config.align.block)
        return Aligned(apply, looked_at, widths, jnp.dtype(config.dtype))
    return Weighed(apply) if config.train.learned_weights else Full(apply)


def _guided(config: ConfigDict, model: PixArt, student: Taught | Lora) -> Adapter:
    """The student, taking the guidance as an input if it is to."""
    return Guided(student, model.hidden_size, config.objective.guidance) if takes_guidance(config) else student


def takes_guidance(config: ConfigDict) -> bool:
    """Whether the model takes the guidance as an input: drawn with `samplers.program.EMBEDDED`."""
    return config.objective.kind == "consistency" and config.objective.guidance_to > 0


def guidance_of_config(config: ConfigDict) -> str:
    """What its pictures are drawn with, see `samplers.program.make_sample_fn`."""
    return EMBEDDED if takes_guidance(config) else config.sample.guidance or guidance_of(config.sample.sampler)


def holds_weights(config: ConfigDict) -> bool:
    """Whether a run of the config holds weights that it does not train, and so reads again when it goes on."""
    return config.adapter.kind != "full" or config.objective.kind in DISTILLED


def lora_spec(config: ConfigDict) -> LoraSpec:
    """The LoRA a config describes.

    Raises:
      InputError: a pattern is no regular expression, or its value no rank or alpha.
    """
    own = config.adapter.lora
    require_patterns([own.pattern], "config.adapter.lora.pattern")
    targets = tuple(name.strip() for name in own.targets.split(",") if name.strip())
    ranks = _pattern(config, "rank_pattern")
    if odd := [value for _, value in ranks if value != int(value)]:
        raise InputError(f"config.adapter.lora.rank_pattern = {own.rank_pattern!r}: {odd[0]:g} is no rank")
    return LoraSpec(
        rank=own.rank,
        alpha=own.alpha,
        targets=targets or REFERENCE_TARGETS,
        pattern=own.pattern,
        rank_pattern=tuple((key, int(value)) for key, value in ranks),
        alpha_pattern=_pattern(config, "alpha_pattern"),
        rslora=own.rslora,
        dora=own.dora,
        dropout=own.dropout,
        init=own.init,
    )


def _pattern(config: ConfigDict, key: str) -> tuple[tuple[str, float], ...]:
    """The pairs of "REGEX=NUMBER,REGEX=NUMBER"."""
    text, pairs = config.adapter.lora[key], []
    for part in text.split(",") if text.strip() else ():
        regex, _, number = part.strip().rpartition("=")
        require_patterns([regex], f"config.adapter.lora.{key}")
        try:
            pairs.append((regex, float(number)))
        except ValueError:
            pairs.append((regex, 0.0))
        if not regex or not 0 < pairs[-1][1] < 1 << 16:
            cure = "must be like attn1.to_q=4,proj_out=8, of positive numbers"
            raise InputError(f"config.adapter.lora.{key} = {text!r}: {cure}")
    return tuple(pairs)


def build_objective(config: ConfigDict, adapter: Adapter, distance: Distance | None = None) -> Gradients:
    """What a config descends.

    Args:
      distance: that of pictures, where the config wants it: it is made of files and of data.

    Raises:
      InputError: it is wanted and missing.
    """
    if config.objective.kind == "distribution_matching":
        return _distribution_matching(config, adapter, distance)
    draws = {
        "adapter_keys": config.adapter.kind == "lora" and config.adapter.lora.dropout > 0,
        ROUTE_KEYS: build_route(config) is not None,
    }
    return with_keys(descend(_loss(config, adapter)), *(name for name, drawn in draws.items() if drawn))


def _distribution_matching(config: ConfigDict, adapter: Adapter, distance: Distance | None) -> Gradients:
    objective = config.objective
    assert isinstance(adapter, Followed)  # `check_config` has seen to it.
    if objective.distance == "lpips" and distance is None:
        raise InputError(
            "config.objective.distance = 'lpips': only a training run opens the networks of it; here set it to 'l2'"
        )
    return DistributionMatching(
        adapter,
        linear_schedule(),
        guidance=objective.guidance,
        distance=distance or latent_distance(objective.distance, objective.huber_c),
        regression_weight=objective.regression_weight,
        fake_updates=objective.fake_updates,
        min_snr_gamma=config.train.min_snr_gamma,
    )


def _loss(config: ConfigDict, adapter: Adapter) -> LossFn:
    objective = config.objective
    if objective.kind == "consistency":
        assert isinstance(adapter, Taught | Lora | Guided)  # `check_config` has seen to it.
        return consistency_loss(
            adapter.apply,
            adapter.teacher,
            linear_schedule(),
            guidance=objective.guidance,
            guidance_to=objective.guidance_to,
            distance=objective.distance,
            huber_c=objective.huber_c,
            solver_steps=objective.solver_steps,
        )
    if isinstance(adapter, Weighed):
        how = {"prediction": config.diffusion.prediction, "timesteps": timesteps_of(config)}
        return uncertain_loss(adapter, linear_schedule(), **how)
    loss_of = functools.partial(_denoising, config)
    # At 0 the run's last part, which goes on without.
    if isinstance(adapter, Aligned) and config.align.until:
        return aligned_loss(loss_of, adapter, weight=config.align.weight)
    return loss_of(adapter.apply)


def _denoising(config: ConfigDict, apply: Callable) -> LossFn:
    """That of an `Adapter.apply`."""
    train = config.train
    if not train.variance_loss:
        apply = without_variance(apply)
    how: dict[str, Any] = {
        "snr": train.snr_loss,
        "min_snr_gamma": train.min_snr_gamma,
        "prediction": config.diffusion.prediction,
        "timesteps": timesteps_of(config),
    }
    if config.data.prior_source:
        return prior_preservation_loss(apply, linear_schedule(), prior_weight=train.prior_weight, **how)
    return diffusion_loss(apply, linear_schedule(), **how)


def position_base(config: ConfigDict) -> int:
    """Tokens along one side of the resolution's square; its square is the padded sequence length N."""
    return config.model.resolution // (DOWNSAMPLE * architecture(config)["patch_size"])


def eval_timesteps(config: ConfigDict) -> tuple[int, ...]:
    """config.eval.timesteps, which `check_config` finds to be some, as numbers."""
    return tuple(int(part) for part in config.eval.timesteps.split(","))


def eval_metrics(config: ConfigDict) -> list[str]:
    """config.eval.metrics as names."""
    return listed(config.eval.metrics)


def optimizer_spec(config: ConfigDict) -> OptimizerSpec:
    """The optimizer a config describes."""
    fields = dict(config.optimizer) | {
        "came": CameSpec(**config.optimizer.came),
        "muon": MuonSpec(**config.optimizer.muon),
    }
    return OptimizerSpec(
        **fields,
        batch_size=config.data.batch_size,
        num_steps=config.train.num_steps,
        patch_size=architecture(config)["patch_size"],
    )


def build_tx(config: ConfigDict, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """What makes updates of a config's gradients, whose parameters lie over a mesh."""
    spec, objective = optimizer_spec(config), config.objective
    if objective.kind != "distribution_matching":
        tx = build_optimizer(spec, mesh=mesh)
        if config.train.learned_weights:
            # With a norm of its own to clip, and nothing that pulls it to 0.
            beside = dataclasses.replace(spec, name="adamw", weight_decay=0.0)
            tx = two_networks(tx, build_optimizer(beside), UNCERTAINTY)
        return keeping_averages(tx, average_lengths(config), _evaluated) if config.average.every else tx
    fake = dataclasses.replace(spec, learning_rate=objective.fake_learning_rate or spec.learning_rate)
    student = in_turns(build_optimizer(spec, objective.fake_updates, mesh), objective.fake_updates)
    return two_networks(student, build_optimizer(fake, mesh=mesh), FAKE)


def average_lengths(config: ConfigDict) -> list[float]:
    """config.average.sigma_rel as numbers."""
    return [float(part) for part in listed(config.average.sigma_rel)]


def _evaluated(params, opt_state):
    """What `Adapter.drawn` leaves of a trained half, as it is evaluated."""
    return {name: part for name, part in settled(opt_state, params).items() if name not in HELPERS}


def mesh_spec(config: ConfigDict) -> MeshSpec:
    """The mesh a config describes."""
    return MeshSpec(**config.mesh)
