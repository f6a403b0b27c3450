"""What settings can work, alone, together, and on a machine."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp

from pixart_jax.config.defaults import ConfigDict, default_config
from pixart_jax.config.settings import flatten, require_setting
from pixart_jax.config.typed import architecture, eval_timesteps, mesh_spec, position_base
from pixart_jax.devices.sharding import AXES, ROWS
from pixart_jax.errors import InputError
from pixart_jax.models.attention import IMPLEMENTATIONS, unmet_needs
from pixart_jax.models.pixart import SIZES
from pixart_jax.models.remat import REMAT_POLICIES
from pixart_jax.optimizers import LR_SCALINGS, OPTIMIZERS, SCHEDULES, lr_scale
from pixart_jax.samplers import SAMPLERS
from pixart_jax.tokens import DOWNSAMPLE


def check_config(config: ConfigDict) -> None:
    """Raises InputError for the first setting that cannot work; names the key, the value and the cure."""

    require = functools.partial(require_setting, config)
    for key, choices in {
        "dtype": ("float32", "bfloat16"),
        "model.size": SIZES,
        "model.adaln": ("single", "full"),
        "model.remat": REMAT_POLICIES,
        "model.attention": IMPLEMENTATIONS,
        "optimizer.name": OPTIMIZERS,
        "optimizer.lr_scaling": LR_SCALINGS,
        "optimizer.schedule": SCHEDULES,
        "init.weights": ("auto", "ema", "raw"),
        "init.unconditional": ("null", "none"),
        "init.kv_compress": ("reference", "preserve"),
        "sample.sampler": SAMPLERS,
    }.items():
        require(flatten(config)[key] in choices, key, f"must be one of {', '.join(choices)}")
    require(
        re.fullmatch(r"none|mean|t\d{1,3}", config.init.reparameterize) is not None,
        "init.reparameterize",
        "must be none, mean, or t and a timestep of 0..999, as in t500",
    )
    for key in (
        "data.batch_size", "train.num_steps", "train.accumulation_steps", "train.log_every", "train.checkpoint_every",
        "train.keep_checkpoints", "model.latent_channels", "model.text_dim", "model.max_text_tokens",
        "sample.num_images", "sample.num_steps", "model.kv_compress_ratio", "model.scan_unroll",
        "eval.every", "eval.num_samples", "mesh.fsdp", "mesh.tensor", "mesh.context",
    ):  # fmt: skip
        require(flatten(config)[key] >= 1, key, "must be at least 1")
    for key in (
        "data.num_workers", "sample.every", "sample.retrieval_captions", "optimizer.warmup_steps", "train.hang_timeout",
        "train.checkpoint_wait", "optimizer.weight_decay", "seed", "eval.seed",
    ):  # fmt: skip
        require(flatten(config)[key] >= 0, key, "must not be negative")
    for key in (
        "optimizer.learning_rate", "optimizer.grad_clip", "optimizer.eps", "optimizer.came.eps1", "optimizer.came.eps2",
        "optimizer.came.clip_threshold", "model.position_scale",
    ):  # fmt: skip
        require(flatten(config)[key] > 0, key, "must be positive")
    for key in ("optimizer.b1", "optimizer.b2", "optimizer.came.b3"):
        require(0 <= flatten(config)[key] < 1, key, "must lie in [0, 1)")
    for key in ("data.text_drop_prob", "train.ema_decay"):
        require(0 <= flatten(config)[key] <= 1, key, "must lie in [0, 1]")
    require(config.mesh.data == -1 or config.mesh.data >= 1, "mesh.data", "must be at least 1, or -1 for the rest")
    _check_optimizer(config, require)
    model = architecture(config)
    hidden, heads, patch = (model[name] for name in ("hidden_size", "num_heads", "patch_size"))
    require(hidden % heads == 0, "model.hidden_size", f"must be a multiple of the {heads} heads")
    require(hidden % 4 == 0, "model.hidden_size", "must be a multiple of 4 for the 2-D position table")
    require(
        not config.model.micro_condition or hidden % 3 == 0,
        "model.hidden_size",
        "must be a multiple of 3 with micro_condition, which splits it between height, width and aspect ratio",
    )
    require(
        config.model.resolution > 0 and config.model.resolution % (DOWNSAMPLE * patch) == 0,
        "model.resolution",
        f"must be a multiple of {DOWNSAMPLE * patch} pixels, the side of one token",
    )
    require(
        (config.model.resolution // (DOWNSAMPLE * patch)) % config.model.kv_compress_ratio == 0,
        "model.kv_compress_ratio",
        f"must divide the {config.model.resolution // (DOWNSAMPLE * patch)} tokens along a side",
    )
    require(heads % config.mesh.tensor == 0, "mesh.tensor", f"must divide the {heads} heads")
    num_keys = position_base(config) ** 2 // config.model.kv_compress_ratio**2
    require(
        num_keys % config.mesh.context == 0,
        "mesh.context",
        f"must divide the {num_keys} keys that config.model.resolution and config.model.kv_compress_ratio leave",
    )
    require(
        config.sample.sampler != "iddpm" or config.model.learn_sigma,
        "sample.sampler",
        "needs the learned variance: set config.model.learn_sigma=True or another sampler",
    )
    require(
        not (config.sample.prompts and config.model.num_classes),
        "sample.prompts",
        f"a model of {config.model.num_classes} classes reads no captions; set it to ''",
    )
    eval_timesteps(config)


def _check_optimizer(config: ConfigDict, require) -> None:
    name, defaults = config.optimizer.name, flatten(default_config())
    foreign = ["optimizer.eps"] if name == "came" else [key for key in defaults if key.startswith("optimizer.came.")]
    for key in foreign:
        require(
            flatten(config)[key] == defaults[key],
            key,
            f"config.optimizer.name={name!r} does not heed it; leave it at {defaults[key]!r}",
        )
    require(
        config.optimizer.schedule != "cosine_decay_to_constant"
        or lr_scale(config.optimizer.lr_scaling, config.data.batch_size) > 1,
        "optimizer.schedule",
        "ends at the rate before lr_scaling, so it needs config.optimizer.lr_scaling to raise that: 'sqrt' or 'linear' "
        "with config.data.batch_size above 256",
    )


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
