"""Every setting of a run with its default, the checks on them, and the typed objects they describe.

A file in configs/ starts from `default_config()` and changes what is its own; `--config.key=value` changes it again.
This module needs only the core's imports, so that a benchmark can read configs on a machine without ml_collections.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import itertools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.models.attention import IMPLEMENTATIONS, AttentionSpec, unmet_needs
from pixart_jax.models.pixart import SIZES, PixArt
from pixart_jax.models.remat import REMAT_POLICIES
from pixart_jax.optimizers import LR_SCALINGS, OPTIMIZERS, SCHEDULES, OptimizerSpec, lr_scale
from pixart_jax.optimizers.came import CameSpec
from pixart_jax.samplers import SAMPLERS
from pixart_jax.sharding import AXES, ROWS, MeshSpec
from pixart_jax.tokens import DOWNSAMPLE

try:
    from ml_collections import ConfigDict
except ImportError:  # Accelerator images often lack it; a config file needs no more than attributes.

    class ConfigDict(dict):  # type: ignore[no-redef]
        """Nested dict with attribute access."""

        def __init__(self, values):
            super().__init__({k: ConfigDict(v) if isinstance(v, dict) else v for k, v in values.items()})

        def __getattr__(self, key):
            try:
                return self[key]
            except KeyError as error:
                raise AttributeError(key) from error

        def __setattr__(self, key, value):
            if key not in self:
                raise AttributeError(f"unknown config key {key}")
            self[key] = value

        def lock(self):
            return self


def default_config() -> ConfigDict:
    """All keys and their defaults; locked, so that a misspelt key is an error."""
    config = ConfigDict(
        {
            # Of parameters, data order and noise; two runs with the same seed are bit-identical on the same machine.
            "seed": 0,
            # Of matrix products: "bfloat16" on accelerators, "float32" on CPU.
            "dtype": "float32",
            # Weights to start from, as tools.convert takes them: a run's workdir (or one checkpoint in it), a model
            # that tools.convert wrote, a .pth, a diffusers folder, a DiT file, a hub id. docs/init_from.md says which
            # changes of model they survive. EMA, optimizer and step start afresh; a run that is resumed ignores it.
            "init_from": "",
            # How they are turned into this model; what does not apply is ignored.
            "init": {
                # Where there are both: "ema" or "raw" parameters; "auto" is EMA, but for a PixArt's .pth `state_dict`.
                "weights": "auto",
                # From a class-conditional DiT to captions: "tN" equals it at timestep N, "mean" is closest over all
                # of them, "none" leaves the modulation fresh.
                "reparameterize": "t500",
                # Which DiT: that of its "null" class, or of "none", without a class vector.
                "unconditional": "null",
                # Key/value compression that appears starts as the "reference"'s, or to "preserve" the function better.
                "kv_compress": "reference",
                # A .npy or .pth of the text encoder's features of the empty caption, to be the null caption.
                "null_text": "",
            },
            "model": {
                # A key of models.pixart.SIZES; the four fields below it override the size where they are not 0.
                "size": "XL/2",
                "hidden_size": 0,
                "depth": 0,
                "num_heads": 0,
                "patch_size": 0,
                "latent_channels": 4,
                # Pixels along one side of the resolution's square: fixes the number of tokens and the base of
                # positions.
                "resolution": 256,
                # `lewei_scale` / `pe_interpolation` of the reference (spec §1.7).
                "position_scale": 1.0,
                "text_dim": 4096,
                # 120 for α, 300 for Σ.
                "max_text_tokens": 120,
                # Above 0: class-conditional, for stage 1.
                "num_classes": 0,
                # α-1024's embedding of image size and aspect ratio.
                "micro_condition": False,
                # Σ's key/value compression: ratio, and the first block that has it.
                "kv_compress_ratio": 1,
                "kv_compress_from": 14,
                "qk_norm": False,
                # "single", or "full" for DiT and the paper's ablation.
                "adaln": "single",
                "learn_sigma": True,
                # What the backward pass recomputes: a key of models.remat.REMAT_POLICIES.
                "remat": "none",
                # Blocks per iteration of the loop over blocks: more compile longer and, on CPU, run faster.
                "scan_unroll": 1,
                # One of models.attention.IMPLEMENTATIONS; "auto" takes the platform's kernel where the shapes suit it.
                "attention": "auto",
            },
            "data": {
                # Directories of feature shards, "DIR" or "DIR:WEIGHT,DIR:WEIGHT"; with `online`, one of pictures; or
                # "synthetic", random numbers of the model's shapes in every aspect ratio, to try a config or a machine.
                "source": "",
                # Encode pictures and captions (or labels) on the way, without tools.extract_features: for small sets.
                # Each visit costs the encoders' time, and every device holds a copy of both. Then `source` is what
                # tools.extract_features takes as --source, `data_dir` what it takes as --data-dir, and `resolution` one
                # that has buckets (256, 512, 1024, 2048, 2880, 4096). Ratios mix freely in the one compiled step; the
                # autoencoder is compiled once for each bucket, when its first picture comes.
                "online": False,
                "data_dir": "",
                # Directories that tools.convert wrote. The autoencoder also decodes the sample grids of shards that
                # were made with it, which are drawn in false colours otherwise; the text encoder also reads their
                # `sample.prompts`.
                "vae": "",
                "text_encoder": "",
                # How `online` cleans captions: "none", "alpha" or "sigma".
                "caption_cleaning": "none",
                # Global: over all devices and processes.
                "batch_size": 256,
                # Processes that read and assemble batches; 0 does it in threads of this one.
                "num_workers": 0,
                # Share of captions (or labels) replaced by the null embedding, for guidance.
                "text_drop_prob": 0.1,
                # Global batches of one aspect ratio each, as the reference's are; else they mix them.
                "group_buckets": False,
            },
            "optimizer": {
                # "adamw" (α) or "came" (Σ, whose weight_decay is 0).
                "name": "adamw",
                "learning_rate": 2e-5,
                # "none", or the reference's rules for the global batch B: "sqrt" (·√(B/256), on in all its configs but
                # DreamBooth's) or "linear" (·B/256). What is logged is the result.
                "lr_scaling": "none",
                # After the warm-up, counted in optimizer steps: "constant"; "cosine", to zero at the end; or
                # "cosine_decay_to_constant", back to the rate before lr_scaling after two thirds.
                "schedule": "constant",
                "warmup_steps": 1000,
                "b1": 0.9,
                "b2": 0.999,
                # AdamW's alone; the reference's.
                "eps": 1e-10,
                # CAME's alone: decay rate of the instability, what is added to the squared gradient and to the
                # instability, and the largest root mean square of a tensor's update.
                "came": {"b3": 0.9999, "eps1": 1e-30, "eps2": 1e-16, "clip_threshold": 1.0},
                "weight_decay": 0.03,
                # Largest global gradient norm.
                "grad_clip": 0.01,
            },
            "train": {
                "num_steps": 100_000,
                # Microbatches that one optimizer step is summed over.
                "accumulation_steps": 1,
                "ema_decay": 0.9999,
                # The optimizer's state lies in the hosts' memory, and comes to the devices for each update.
                "offload_optimizer": False,
                # The reference's `snr_loss`; no config it ships sets it.
                "snr_loss": False,
                "log_every": 100,
                "checkpoint_every": 1000,
                # A checkpoint is written while training goes on. Seconds that a step may wait, to be saved, for the one
                # before to be complete; then it is not saved, unless it is the last, or a signal asks to stop.
                "checkpoint_wait": 60,
                # The newest ones. With 1 there is none to go back to from one that the disk has damaged.
                "keep_checkpoints": 2,
                # Seconds that a step, a save, an evaluation or a sample grid may take before the run is taken to hang:
                # it then writes the stacks of its threads and exits with status 75, to be started again. 0: never.
                "hang_timeout": 1800,
            },
            "mesh": {
                # Devices along each axis; their product is the number of devices, and -1 is what the others leave.
                # "data" splits the batch, and goes over the slow links between slices.
                "data": -1,
                # Splits parameters, EMA and optimizer state, and the batch like "data".
                "fsdp": 1,
                # Splits attention's heads and the MLPs: for parameters or batches too small for so many devices.
                "tensor": 1,
                # Splits each image's tokens: for 2K and 4K, where one image is a device's worth of work.
                "context": 1,
            },
            "sample": {
                # Steps between sample grids; 0 draws none.
                "every": 5000,
                # What they show: prompts, one a line, or the name of a text file of them that ends in .txt; "" draws
                # `num_images` captions of the training data, each beside its picture. For shards with features of T5,
                # `data.text_encoder` must name it.
                "prompts": "",
                "num_images": 16,
                "sampler": "dpm-solver",
                "num_steps": 20,
                "guidance_scale": 4.5,
                # Captions that the end of the run measures retrieval@1 over, for data sets small enough to know by
                # heart; 0 skips it.
                "retrieval_captions": 0,
            },
            "eval": {
                # Directories of held-out feature shards, "DIR" or "DIR,DIR", made with the encoders of the training
                # data; "" evaluates nothing.
                "source": "",
                # Steps between evaluations; the first and the last step have one too.
                "every": 5000,
                # Pictures, spread evenly over the source.
                "num_samples": 1024,
                # Model timesteps, 0 (hardly any noise) to 999: a curve each.
                "timesteps": "50,150,250,350,450,550,650,750,850,950",
                # Of the noise, and apart from the run's, so that runs compare.
                "seed": 0,
            },
        }
    )
    config.lock()
    return config


def read_config_file(path: str) -> ConfigDict:
    """The ConfigDict of a config file.

    Raises:
      InputError: no such file, or it sets a key that does not exist.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"--config={path}: no such file; see configs/")
    module_spec = importlib.util.spec_from_file_location("run_config", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        return module.get_config()
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: {error}; run from the repository's root, where configs/ is") from error
    except (AttributeError, KeyError) as error:
        raise InputError(f"{path}: {error}") from error


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a run recorded.

    Raises:
      InputError: no run has started there.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: {workdir} is not the workdir of a run")
    return ConfigDict(_merged(default_config(), json.loads(path.read_text())))


def _merged(defaults, values: dict) -> dict:
    """`values`, with the default of every key that a run of an older version did not know."""
    known = {key: value for key, value in defaults.items() if key not in values}
    nested = {key: value for key, value in values.items() if isinstance(value, dict) and key in defaults}
    return {**known, **values, **{key: _merged(defaults[key], value) for key, value in nested.items()}}


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """{"model.depth": 28, ...}: every key of a config by its dotted name."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def unknown_key_error(key: str, config: ConfigDict) -> InputError:
    """The error for a dotted key that is not in the config, with the nearest that is."""
    known = list(flatten(config))
    # Compare last parts as well: `lr` under the wrong section should still find its home.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
        name for name in known if name.split(".")[-1] == key.split(".")[-1]
    ]
    hint = f"did you mean config.{near[0]}?" if near else f"known keys: {', '.join(known)}"
    return InputError(f"unknown config key config.{key}; {hint}")


def override(config: ConfigDict, setting: str) -> None:
    """Applies one --config.key=value, where absl's flags are not at hand.

    Raises:
      InputError: another form, an unknown key, or a value of another type than the key's.
    """
    name, separator, text = setting.partition("=")
    key = name.removeprefix("--config.")
    if key == name or not separator:
        raise InputError(f"what is {setting!r}? Settings are changed by --config.key=value")
    known = flatten(config)
    if key not in known:
        raise unknown_key_error(key, config)
    value = text
    if not isinstance(known[key], str):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if isinstance(known[key], float) and type(value) is int:
            value = float(value)
        if type(value) is not type(known[key]):
            raise InputError(f"config.{key} = {text!r}: must be of type {type(known[key]).__name__}")
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value


def require_setting(config: ConfigDict, ok: bool, key: str, cure: str) -> None:
    """Raises InputError with the dotted key, its value and the cure, unless `ok`."""
    if not ok:
        raise InputError(f"config.{key} = {flatten(config)[key]!r}: {cure}")


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


def architecture(config: ConfigDict) -> dict[str, int]:
    """hidden_size, depth, num_heads and patch_size: those of the named size, with the config's own where it sets
    them."""
    return {name: config.model[name] or value for name, value in SIZES[config.model.size].items()}


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
        qk_norm=config.model.qk_norm,
        adaln=config.model.adaln,
        learn_sigma=config.model.learn_sigma,
        remat=config.model.remat,
        attention=AttentionSpec(config.model.attention, mesh),
        dtype=jnp.dtype(config.dtype),
        scan_unroll=config.model.scan_unroll,
    )


def position_base(config: ConfigDict) -> int:
    """Tokens along one side of the resolution's square; its square is the padded sequence length N."""
    return config.model.resolution // (DOWNSAMPLE * architecture(config)["patch_size"])


def eval_timesteps(config: ConfigDict) -> tuple[int, ...]:
    """config.eval.timesteps as numbers; raises InputError if they are none, or no timesteps."""
    timesteps = [int(part) if part.strip().isdecimal() else -1 for part in config.eval.timesteps.split(",")]
    rising = all(low < high for low, high in itertools.pairwise([-1, *timesteps, linear_schedule().num_steps]))
    require_setting(config, rising, "eval.timesteps", "must be rising timesteps from 0 to 999 with commas between them")
    return tuple(timesteps)


def optimizer_spec(config: ConfigDict) -> OptimizerSpec:
    """The optimizer a config describes."""
    fields = dict(config.optimizer) | {"came": CameSpec(**config.optimizer.came)}
    return OptimizerSpec(
        **fields,
        batch_size=config.data.batch_size,
        num_steps=config.train.num_steps,
        patch_size=architecture(config)["patch_size"],
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


def mesh_spec(config: ConfigDict) -> MeshSpec:
    """The mesh a config describes."""
    return MeshSpec(**config.mesh)


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
