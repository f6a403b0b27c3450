"""What settings can work, alone, together, and on a machine."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.adapters.layers import is_target, layers_of
from pixart_jax.config.declaration import Require
from pixart_jax.config.defaults import DISTILLED, SETTINGS, ConfigDict, default_config
from pixart_jax.config.processes import process_fits
from pixart_jax.config.savings_checks import (
    alignment_fits,
    averages_fit,
    learned_weights_fit,
    path_can_drop,
    route_fits,
)
from pixart_jax.config.settings import check_keys, flatten, require_setting
from pixart_jax.config.typed import architecture, build_model, eval_metrics, lora_spec, mesh_spec, position_base
from pixart_jax.devices.sharding import AXES, ROWS
from pixart_jax.errors import InputError
from pixart_jax.models.attention import unmet_needs
from pixart_jax.models.layers import keys_per_block
from pixart_jax.models.params import parameter_shapes
from pixart_jax.optimizers import lr_scale
from pixart_jax.tokens import DOWNSAMPLE


def check_config(config: ConfigDict) -> None:
    """Raises InputError for the first setting that cannot work; names the key, the value and the cure."""
    check_keys(config)
    require = functools.partial(require_setting, config)
    values = flatten(config)
    for key, setting in flatten(SETTINGS).items():
        value = values[key]
        is_finite = not isinstance(value, float) or abs(value) <= float(np.finfo(np.float32).max)
        require(is_finite, key, "must be a finite number that float32 can hold")
        require(setting.range.holds(value), key, setting.range.cure)
    for check in (
        _optimizer_heeds_what_is_set,
        _schedule_free_has_no_schedule,
        _schedule_has_where_to_end,
        _width_can_be_split,
        _resolution_is_whole_tokens,
        _keys_can_be_compressed,
        _mesh_can_split_attention,
        process_fits,
        _prompts_are_read,
        _losses_fit,
        _distillation_has_a_teacher,
        _lpips_has_its_files,
        _metrics_have_what_they_need,
        _adapter_start_has_an_adapter,
        _lora_has_a_base,
        _controlnet_has_a_base,
        route_fits,
        path_can_drop,
        alignment_fits,
        averages_fit,
        learned_weights_fit,
    ):
        check(config, require)


def _optimizer_heeds_what_is_set(config: ConfigDict, require: Require) -> None:
    name, values, defaults = config.optimizer.name, flatten(config), flatten(default_config())
    own = [f"optimizer.{other}." for other in ("came", "muon") if other != name]
    foreign = [key for key in defaults if key.startswith(tuple(own)) or (name == "came" and key == "optimizer.eps")]
    for key in foreign:
        cure = f"config.optimizer.name={name!r} does not heed it; leave it at {defaults[key]!r}"
        require(values[key] == defaults[key], key, cure)
    require(
        name != "muon" or config.adapter.kind != "lora",
        "optimizer.name",
        "Muon is for the blocks' own matrices, of which a LoRA trains none; set it to adamw",
    )


def _schedule_free_has_no_schedule(config: ConfigDict, require: Require) -> None:
    optimizer = config.optimizer
    if optimizer.name != "schedule_free":
        return
    require(
        optimizer.schedule == "constant",
        "optimizer.schedule",
        "config.optimizer.name='schedule_free' averages in place of a decay, which would undo it; set it to 'constant'",
    )
    require(optimizer.b1 > 0, "optimizer.b1", "must be above 0: x's share of where gradients are taken")
    require(
        config.objective.kind not in DISTILLED,
        "optimizer.name",
        "a student is compared with what it was a step before, which 'schedule_free' evaluates elsewhere than it takes "
        "gradients; set it to adamw",
    )


def _schedule_has_where_to_end(config: ConfigDict, require: Require) -> None:
    falls, share = config.optimizer.schedule == "warmup_stable_decay", config.optimizer.decay_share
    usual = default_config().optimizer.decay_share
    cure = f"only config.optimizer.schedule='warmup_stable_decay' heeds it; leave it at {usual}"
    require(falls or share == usual, "optimizer.decay_share", cure)
    require(
        config.optimizer.schedule != "cosine_decay_to_constant"
        or lr_scale(config.optimizer.lr_scaling, config.data.batch_size) > 1,
        "optimizer.schedule",
        "ends at the rate before lr_scaling, so it needs config.optimizer.lr_scaling to raise that: 'sqrt' or 'linear' "
        "with config.data.batch_size above 256",
    )


def _width_can_be_split(config: ConfigDict, require: Require) -> None:
    hidden, heads = (architecture(config)[name] for name in ("hidden_size", "num_heads"))
    require(hidden % heads == 0, "model.hidden_size", f"must be a multiple of the {heads} heads")
    require(hidden % 4 == 0, "model.hidden_size", "must be a multiple of 4 for the 2-D position table")
    require(
        not config.model.micro_condition or hidden % 3 == 0,
        "model.hidden_size",
        "must be a multiple of 3 with micro_condition, which splits it between height, width and aspect ratio",
    )


def _resolution_is_whole_tokens(config: ConfigDict, require: Require) -> None:
    side = DOWNSAMPLE * architecture(config)["patch_size"]
    require(
        config.model.resolution > 0 and config.model.resolution % side == 0,
        "model.resolution",
        f"must be a multiple of {side} pixels, the side of one token",
    )


def _keys_can_be_compressed(config: ConfigDict, require: Require) -> None:
    side = position_base(config)
    require(
        side % config.model.kv_compress_ratio == 0,
        "model.kv_compress_ratio",
        f"must divide the {side} tokens along a side",
    )


def _mesh_can_split_attention(config: ConfigDict, require: Require) -> None:
    heads = architecture(config)["num_heads"]
    require(heads % config.mesh.tensor == 0, "mesh.tensor", f"must divide the {heads} heads")
    ratio = config.model.kv_compress_ratio
    num_keys = position_base(config) ** 2 // ratio**2 * keys_per_block(config.model.kv_sampling, ratio)
    require(
        num_keys % config.mesh.context == 0,
        "mesh.context",
        f"must divide the {num_keys} keys that config.model.resolution and config.model.kv_compress_ratio leave",
    )


def _prompts_are_read(config: ConfigDict, require: Require) -> None:
    require(
        not (config.sample.prompts and config.model.num_classes),
        "sample.prompts",
        f"a model of {config.model.num_classes} classes reads no captions; set it to ''",
    )


def _losses_fit(config: ConfigDict, require: Require) -> None:
    train = config.train
    require(
        not (train.snr_loss and train.min_snr_gamma),
        "train.min_snr_gamma",
        "weighs the error of the noise, and config.train.snr_loss measures another where there is little; set one",
    )
    require(
        train.prior_weight == 1 or bool(config.data.prior_source),
        "train.prior_weight",
        "only config.data.prior_source heeds it; leave it at 1.0",
    )


def _metrics_have_what_they_need(config: ConfigDict, require: Require) -> None:
    metrics, evaluation = eval_metrics(config), config.eval
    require(
        "clip_score" not in metrics or bool(evaluation.clip.strip()),
        "eval.clip",
        f"config.eval.metrics={evaluation.metrics!r} needs a CLIP: name its folder",
    )
    require(
        "clip_score" not in metrics or not config.model.num_classes,
        "eval.metrics",
        f"a model of {config.model.num_classes} classes reads no captions; leave clip_score out",
    )
    require(
        not {*metrics} & {"frechet_distance", "kid"} or bool(evaluation.network_weights.strip()),
        "eval.network_weights",
        f"config.eval.metrics={evaluation.metrics!r} needs the weights of {evaluation.network}: name their file "
        "(docs/evaluation.md says where they are to be had)",
    )
    require(
        "kid" not in metrics or not evaluation.reference.strip(),
        "eval.metrics",
        "kid needs the reference's pictures, and config.eval.reference is a file of mean and covariance; leave out one "
        "of them",
    )


def _adapter_start_has_an_adapter(config: ConfigDict, require: Require) -> None:
    kind, start = config.adapter.kind, config.adapter.init_from
    cure = f"is for a LoRA or a ControlNet, and config.adapter.kind is {kind!r}; set it to ''"
    require(not start or kind != "full", "adapter.init_from", cure)
    cure = "a student that takes the guidance begins without an adapter's; set config.objective.guidance_to to 0"
    require(not start or not config.objective.guidance_to, "adapter.init_from", cure)
    cure = "is laid over weights that exist already; name them (config.init_from)"
    require(not start or bool(config.init_from), "adapter.init_from", cure)


def _lora_has_a_base(config: ConfigDict, require: Require) -> None:
    if config.adapter.kind != "lora":
        return
    require(
        bool(config.init_from) or config.data.source == "synthetic",
        "init_from",
        "config.adapter.kind='lora' trains beside weights that exist already; name them",
    )
    lora_spec(config)
    names = [name for layer in layers_of(parameter_shapes(build_model(config))) for name in layer.names]
    for key in ("pattern", "targets"):
        chosen = config.adapter.lora[key]
        targets = tuple(name.strip() for name in chosen.split(","))
        wanted = [("", chosen)] if key == "pattern" and chosen else [(name, "") for name in targets if name]
        for target, pattern in wanted:
            require(
                any(is_target(name, (target,), pattern) for name in names),
                f"adapter.lora.{key}",
                f"{target or pattern!r} fits no linear layer of the model; they are called as in diffusers: "
                f"{names[0]}, {names[-1]} ...",
            )


def _controlnet_has_a_base(config: ConfigDict, require: Require) -> None:
    if config.adapter.kind != "controlnet":
        return
    require(
        bool(config.init_from) or config.data.source.strip() == "synthetic",
        "init_from",
        "config.adapter.kind='controlnet' trains beside weights that exist already; name them",
    )
    depth = architecture(config)["depth"]
    cure = f"must be below the {depth} blocks of the model"
    require(config.adapter.controlnet.num_copies < depth, "adapter.controlnet.num_copies", cure)
    require(
        not config.sample.prompts,
        "sample.prompts",
        "prompts have no control pictures; set it to '', which draws captions of the training data with theirs",
    )


def _distillation_has_a_teacher(config: ConfigDict, require: Require) -> None:
    low, high = config.objective.guidance, config.objective.guidance_to
    cure = f"must be more than config.objective.guidance, {low:g}, from which it is drawn; or 0, to keep to that"
    require(not high or high > low, "objective.guidance_to", cure)
    kind = config.objective.kind
    require(
        not high or kind == "consistency",
        "objective.guidance_to",
        "is for config.objective.kind='consistency'; set it to 0",
    )
    require(
        1000 % config.objective.solver_steps == 0,
        "objective.solver_steps",
        "must divide the 1000 timesteps: 50 as in the paper, or 10, 20, 25, 100",
    )
    require(
        kind == "distribution_matching" or not config.data.pair_source.strip(),
        "data.pair_source",
        f"pairs are for distribution matching, and config.objective.kind is {kind!r}; set it to ''",
    )
    if kind not in DISTILLED:
        return
    require(
        bool(config.init_from) or config.data.source.strip() == "synthetic",
        "init_from",
        f"config.objective.kind={kind!r} distils weights that exist already; name them",
    )
    unset = {"data.prior_source": "", "train.snr_loss": False, "train.min_snr_gamma": 0.0, "train.variance_loss": True}
    if kind == "distribution_matching":
        del unset["train.min_snr_gamma"]
        require(config.adapter.kind == "full", "adapter.kind", "distribution matching trains all; set it to full")
        sampler = config.sample.sampler
        require(sampler == "dmd", "sample.sampler", "distribution matching is for one step of 'dmd'; set it to that")
        require(config.sample.num_steps == 1, "sample.num_steps", "distribution matching is for one step; set it to 1")
    require(
        config.adapter.kind != "controlnet", "adapter.kind", "a ControlNet is not distilled; set it to full or lora"
    )
    require(
        not config.model.num_classes,
        "model.num_classes",
        "the teacher is guided away from the null caption; set it to 0",
    )
    for key, value in unset.items():
        cure = f"is for denoising, and config.objective.kind is {kind!r}; set it to {value!r}"
        require(flatten(config)[key] == value, key, cure)


def _lpips_has_its_files(config: ConfigDict, require: Require) -> None:
    objective = config.objective
    wanted = objective.distance == "lpips"
    require(
        not wanted or (objective.kind == "distribution_matching" and bool(config.data.pair_source.strip())),
        "objective.distance",
        "compares the pictures of distribution matching's pairs (config.data.pair_source); set it to huber or l2",
    )
    for key in ("lpips_vgg", "lpips_heads"):
        require(not wanted or bool(objective[key].strip()), f"objective.{key}", "name the file of LPIPS's weights")
        require(wanted or not objective[key], f"objective.{key}", "only the distance 'lpips' reads it; set it to ''")


def check_batch(config: ConfigDict, num_devices: int) -> None:
    """Raises InputError unless the mesh can be made of the devices, and rows of the global batch can be split evenly
    over it and over the accumulation steps."""
    sizes = dict(zip(AXES, mesh_spec(config).shape(num_devices), strict=True))
    rows = math.prod(sizes[name] for name in ROWS)
    unit = rows * config.train.accumulation_steps
    batch = config.data.batch_size
    if batch % unit:
        low = batch // unit * unit
        near = f"{low} or {low + unit}" if low else f"{unit}"
        raise InputError(
            f"config.data.batch_size = {batch} cannot be split over {rows} part(s) of the mesh in "
            f"{config.train.accumulation_steps} accumulation step(s); the nearest that can: {near}"
        )


def check_attention(config: ConfigDict, device: jax.Device) -> None:
    """Raises InputError unless such a device can compute attention as `config.model.attention` says."""
    model = architecture(config)
    head_dim = model["hidden_size"] // model["num_heads"]
    needs = unmet_needs(config.model.attention, device, jnp.dtype(config.dtype), head_dim)
    require_setting(config, needs is None, "model.attention", needs or "")


def check_offload(config: ConfigDict, device: jax.Device) -> None:
    """Raises InputError if `config.train.offload_optimizer` is set and such a device cannot reach its host's memory."""
    kinds = {memory.kind for memory in device.addressable_memories()}
    require_setting(
        config,
        not config.train.offload_optimizer or "pinned_host" in kinds,
        "train.offload_optimizer",
        f"{device.device_kind} has no memory of the kind pinned_host, but {', '.join(sorted(kinds))}; set it to False",
    )
