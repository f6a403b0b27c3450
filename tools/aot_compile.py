"""Compiles one program of one config for TPUs that are not there; tools.aot runs it in a process of its own.

python -m tools.aot_compile '{"config": "configs/stage3_512.py", ...}'     # the fields of a Case

Prints one JSON object: the figures, or {"error": ...} where the input is at fault, or {"fits": false, ...} where the
compiler ran out of the device's memory.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Apply, Parameters, Params
from pixart_jax.config import (
    ConfigDict,
    architecture,
    build_adapter,
    build_model,
    check_batch,
    check_config,
    mesh_spec,
    optimizer_spec,
    position_base,
    read_config_file,
    target_of,
)
from pixart_jax.devices.hardware import HARDWARE, Hardware
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.pretrained import TILE_SIZE, draw
from pixart_jax.encoding.spread import Spread
from pixart_jax.errors import InputError
from pixart_jax.generation.placing import (
    check_devices,
    check_tokens,
    drawing_mesh,
    parse_mesh,
    pictures_at_once,
    places,
)
from pixart_jax.models.params import abstract_params, apply_of, init_params, kernels_as, with_shardings
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.optimizers import build_optimizer
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import make_sample_fn
from pixart_jax.training.memory import settle
from pixart_jax.training.program import Program

from .aot_cycles import estimate
from .aot_flops import attention_flops, recomputed_flops, sampling_flops, train_flops, unfilled_flops
from .aot_hlo import BETWEEN_SLICES, count_traffic
from .aot_overlap import count_overlap
from .bench.train import synthetic_shapes, training_batch
from .encoder_costs import VAE, vae_flops

PROGRAMS = ("train", "sample", "decode")
# Of a chip's memory, what its share of parameters, EMA and optimizer state may take before it is split further.
STATE_SHARE = 1 / 8


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled.

    Attributes:
      config: path of a config file; settings: the --config.key=value that change it.
      topology: as `parse_topology` takes it.
      program: "train", the whole training step; "sample", all steps of one batch of pictures; "decode", the
        autoencoder's part for one batch, of large pictures for one of their tiles.
      accumulation_steps: of the training step; 0 leaves the config's own.
      blocks: of the model; 0 leaves the config's own.
      mesh: how chips draw, as `placing.parse_mesh` takes it: as few pictures as keep all at work. "" is one picture on
        each chip.
    """

    config: str
    settings: tuple[str, ...]
    topology: str
    program: str = "train"
    accumulation_steps: int = 0
    blocks: int = 0
    mesh: str = ""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Equal slices of TPU chips. name: one slice, as libtpu calls it."""

    slices: int
    name: str
    chips: int
    hardware: Hardware


def parse_topology(text: str) -> Topology:
    """ "v5e:4x4", or "2xv5e:16x16" for two slices with a data-centre network between them.

    Raises:
      InputError: another form, or a TPU whose memory and speed are not known here.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(v\w+):([1-9]\d*(?:x[1-9]\d*)+)", text)
    known = [name for name, hardware in HARDWARE.items() if hardware.interconnect]
    if not match or match[2] not in known:
        raise InputError(
            f"--topology={text}: must be [SLICESx]CHIP:SHAPE, such as v5e:16x16, v5p:8x8x8 or 2xv5e:16x16, of numbers "
            f"from 1 up, with a CHIP of {', '.join(known)}"
        )
    slices = int(match[1] or 1)
    chips = slices * math.prod(map(int, match[3].split("x")))
    return Topology(slices, f"{match[2]}:{match[3]}", chips, HARDWARE[match[2]])


def case_config(case: Case) -> ConfigDict:
    """The config as it is compiled: its batch is the nearest multiple of the chips that is no larger, or one picture on
    each chip where it has fewer. Chips that split pictures among them, by a context or tensor axis, count as one. With
    fewer blocks than its own the share of those that compress keys and values stays.

    Raises:
      InputError: the config cannot work, or the accumulation steps do not divide a chip's pictures.
    """
    config = read_config_file(case.config, case.settings)
    if case.blocks:
        config.model.kv_compress_from = config.model.kv_compress_from * case.blocks // architecture(config)["depth"]
        config.model.depth = case.blocks
    check_config(config)
    chips = parse_topology(case.topology).chips
    rows = max(chips // (config.mesh.context * config.mesh.tensor), 1)
    config.data.batch_size = max(config.data.batch_size // rows, 1) * rows
    config.train.accumulation_steps = case.accumulation_steps or config.train.accumulation_steps
    check_batch(config, chips)
    if case.mesh:
        spec, side = parse_mesh(case.mesh), position_base(config)
        check_devices(spec, chips)
        check_tokens(spec.context, build_model(config), config.model.resolution, side**2)
    return config


def compile_case(case: Case) -> dict:
    """Compiles, and reads off what the compiler knows; all figures are per chip and execution.

    Raises:
      InputError: see `case_config`; or libtpu knows no such topology.
    """
    topology, config = parse_topology(case.topology), case_config(case)
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chips == 1:  # Hosts have four, unless they are told to have fewer.
        options["chips_per_host_bounds"] = (1, 1, 1)
    devices: Sequence[Any]  # jaxlib ships no types
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(f"--topology={case.topology}: {str(error).splitlines()[0]}") from error
    # Slice after slice; a single one has no index.
    devices = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.id))
    if len(devices) != topology.chips:
        raise InputError(f"--topology={case.topology}: has {len(devices)} devices, not one on each chip")

    begin = time.perf_counter()
    if case.program == "train":
        if not any(setting.startswith("--config.mesh.fsdp=") for setting in case.settings):
            config.mesh.fsdp = default_fsdp(case_config(dataclasses.replace(case, blocks=0)), topology)
        mesh = make_mesh(mesh_spec(config), devices)
        shapes = synthetic_shapes(config, mesh, training_batch)
        config, _ = settle(config, mesh, shapes, limit=topology.hardware.memory_bytes)
        lowered = Program(config, mesh).lower(shapes)
        flops = train_flops(config)
        executed = flops + recomputed_flops(config, flops)
        attended = 3 + (config.model.remat == "full")
        layers = (3 if config.adapter.kind == "full" else 2) + (config.model.remat in ("attention", "full"))
    elif case.program == "decode":
        pictures = topology.chips
        if case.mesh:
            pictures = pictures_at_once(1, 1, drawing_mesh(parse_mesh(case.mesh), devices), 2)
        config.mesh.update({"fsdp": 1, "context": topology.chips // pictures, "tensor": 1})
        config.data.batch_size, config.train.accumulation_steps = pictures, 1
        lowered, flops = lower_decoding(config, np.asarray(devices))
        executed, attended, layers = flops, 0, 0
    else:
        # As tools.sample draws: whole parameters on every chip, and all tokens.
        mesh = drawing_mesh(parse_mesh(case.mesh or f"data={topology.chips}"), devices)
        config.model.route.update({"ratio": 0.0, "form": "tread"})
        config.mesh.update({"fsdp": 1, "context": mesh.shape["context"], "tensor": 1})
        wanted = 1 if case.mesh else topology.chips
        config.data.batch_size, config.train.accumulation_steps = pictures_at_once(wanted, wanted, mesh, 2), 1
        lowered = lower_sampling(config, mesh)
        flops = executed = sampling_flops(config)
        attended = layers = 2 * config.sample.num_steps
    lower_seconds = time.perf_counter() - begin
    figures = {
        "chips": topology.chips,
        "batch_size": config.data.batch_size,
        "accumulation_steps": config.train.accumulation_steps,
        "fsdp": config.mesh.fsdp,
        "context": config.mesh.context,
        "remat": config.model.remat,
        "capacity_bytes": topology.hardware.memory_bytes,
        "flops": flops / topology.chips,
        "executed_flops": executed / topology.chips,
        "attention_flops": attended * attention_flops(config) / topology.chips,
        "unfilled_flops": layers * unfilled_flops(config, topology.hardware.matrix_rows) / topology.chips,
        "lower_seconds": lower_seconds,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }
    begin = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"fits": False, "compiler": out_of_memory(str(error))}
    figures["compile_seconds"] = time.perf_counter() - begin
    return figures | read_off(compiled, figures, topology)


def default_fsdp(config: ConfigDict, topology: Topology) -> int:
    """The fewest chips, of 1, 2, 4, ... in one slice, over which a share of the state is no more than STATE_SHARE of
    the memory."""
    state = jax.eval_shape(lambda: _whole_state(config))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    per_slice, fsdp = topology.chips // topology.slices // (config.mesh.context * config.mesh.tensor), 1
    while size / fsdp > STATE_SHARE * topology.hardware.memory_bytes and per_slice % (2 * fsdp) == 0:
        fsdp *= 2
    return fsdp


def kept_bytes(config: ConfigDict) -> int:
    """The least that the backward pass of one picture needs kept: each block's input, attention's results where they
    are not computed again, and those of products with weights where they are not."""
    model, dtype = architecture(config), config.dtype
    kinds = 1 if config.model.num_classes else 2
    attention = 0 if config.model.remat == "full" else kinds
    # q, k, v and the projection behind self-attention, two of cross-attention, four and one of the MLP.
    products = 9 + 2 * (kinds - 1) if config.model.remat in ("none", "dots") else 0
    a_channel = jnp.dtype(config.residual_dtype or dtype).itemsize + (attention + products) * jnp.dtype(dtype).itemsize
    return model["depth"] * position_base(config) ** 2 * model["hidden_size"] * a_channel


def _whole_state(config: ConfigDict):
    """What lies in the devices' memory."""
    model = build_model(config)
    trained, frozen = build_adapter(config, model).split(init_params(model, jax.random.key(0)), jax.random.key(0))
    offloaded = config.train.offload_optimizer
    return frozen, trained, trained, None if offloaded else build_optimizer(optimizer_spec(config)).init(trained)


def lower_sampling(config: ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """All steps of the config's sampler for one batch, with the kernels that `tools.sample` holds."""
    apply, params = _drawn_with(config, mesh)
    conditions = synthetic_shapes(config, mesh)
    noise = conditions.pop("tokens")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.data.batch_size))
    batch = (noise, keys, conditions, null_branch(conditions))
    noise, keys, conditions, null = jax.tree.map(
        lambda one, sharding: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding), batch, places(mesh, batch)
    )
    target = target_of(config)
    schedule = target.schedule(config.sample.sampler)
    sampler = build_sampler(config.sample.sampler, schedule, config.sample.num_steps)
    return make_sample_fn(target.fit(apply, schedule), schedule, sampler).lower(
        params,
        noise,
        keys,
        conditions,
        null,
        config.sample.guidance_scale,
    )


def lower_decoding(config: ConfigDict, devices: np.ndarray) -> tuple[jax.stages.Lowered, float]:
    """The autoencoder's part for a batch of square pictures, of large ones for tiles, as `Autoencoder` lays them over
    these devices; and its FLOPs."""
    model, spread = AutoencoderKL(**VAE, dtype=jnp.dtype(config.dtype)), Spread(devices)
    side = min(position_base(config) * build_model(config).patch_size, TILE_SIZE)
    pictures = config.data.batch_size
    latents = jax.ShapeDtypeStruct((pictures, side, side, model.latent_channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, method="decode"), latents)["params"]
    latents = latents.update(sharding=spread.sharding(spread.strips(pictures, side)))
    lowered = draw.lower(model, with_shardings(shapes, spread.mesh), latents)
    return lowered, pictures * vae_flops(side * model.downsample, "decode")


def _drawn_with(config: ConfigDict, mesh: Mesh) -> tuple[Apply, Params]:
    """What is called for a prediction, a ControlNet with its base, and the shapes of its parameters. A LoRA is little
    beside its base, which alone is drawn with here."""
    program, dtype = Program(config, mesh), jnp.dtype(config.dtype)
    if config.adapter.kind == "controlnet":
        return program.apply, Parameters(kernels_as(dtype, program.state.params), program.frozen)
    return apply_of(program.model), kernels_as(dtype, abstract_params(program.model, mesh))


def out_of_memory(message: str) -> str:
    """What the compiler says is too much, such as "Used 20.52G of 15.75G hbm"."""
    if match := re.search(r"Used [\d.]+\w* of [\d.]+\w* hbm", message):
        return match[0]
    if match := re.search(r"HLO temporaries \(([\d.]+\w*)\) exceeds available HBM \(([\d.]+\w*)\)", message):
        return f"{match[1]} of scratch, {match[2]} hbm"
    return message.splitlines()[0]


def read_off(compiled: jax.stages.Compiled, figures: dict, topology: Topology) -> dict:
    """Memory, traffic, and the time below which the step cannot come on hardware as fast as published."""
    hardware = topology.hardware
    memory, text, cost = compiled.memory_analysis(), compiled.as_text(), compiled.cost_analysis()
    if memory is None or text is None or cost is None:
        raise RuntimeError("the compiler tells nothing of what it has compiled: libtpu and jax do not fit together")
    arguments, scratch = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = arguments + outputs + scratch + memory.generated_code_size_in_bytes
    traffic, cycles = count_traffic(text, topology.chips), estimate(text)
    overlap = count_overlap(text, topology.chips, hardware)
    occupied = figures["executed_flops"] + figures["unfilled_flops"]
    if cycles.kernels:  # Their products as the program has them, in place of those that the model needs.
        occupied += cycles.kernel_flops(hardware) - figures["attention_flops"]
    bounds = lower_bounds(occupied, traffic.memory_bytes, traffic.collective_bytes, hardware)
    seconds = cycles.seconds(hardware)
    return {
        "fits": total <= hardware.memory_bytes,
        "argument_bytes": arguments,
        "host_argument_bytes": memory.host_argument_size_in_bytes,
        "scratch_bytes": scratch,
        "total_bytes": total,
        "memory_bytes": traffic.memory_bytes,
        # XLA's own count: the body of every loop once, and what stays in the chip's vector memory too.
        "xla_bytes_accessed": cost["bytes accessed"],
        "collective_bytes": traffic.collective_bytes,
        "collective_counts": traffic.collective_counts,
        # What the links take at least, and what of it the schedule has no work beside.
        "collective_seconds": overlap.seconds,
        "exposed_seconds": overlap.exposed_seconds,
        "collectives_begun_early": overlap.pairs,
        "unknown_loops": traffic.unknown_loops,
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        # What the matrix units' time comes to, idle rows included.
        "occupied_flops": occupied,
        # The compiler's, of all but the kernels, which it does not estimate.
        "estimated_cycles": cycles.cycles,
        "estimated_seconds": seconds,
        "estimated_utilisation": figures["flops"] / hardware.peak_flops / seconds if seconds else None,
        "kernels_not_estimated": cycles.others,
        "bounds_seconds": bounds,
        "bound_seconds": max(bounds.values()),
        "utilisation": figures["flops"] / hardware.peak_flops / max(bounds.values()),
    }


def lower_bounds(
    flops: float, memory_bytes: float, collective_bytes: dict[str, float], hardware: Hardware
) -> dict[str, float]:
    """Seconds below which a program cannot come, by what limits it; a network of unknown speed limits nothing."""
    within_slice = sum(count for kind, count in collective_bytes.items() if kind != BETWEEN_SLICES)
    bounds = {
        "arithmetic": flops / hardware.peak_flops,
        "memory": memory_bytes / hardware.bandwidth,
    }
    if hardware.interconnect:
        bounds["collectives"] = within_slice / hardware.interconnect
    if BETWEEN_SLICES in collective_bytes and hardware.network:
        bounds["network"] = collective_bytes[BETWEEN_SLICES] / hardware.network
    return bounds


def main(argv: list[str]) -> int:
    fields = json.loads(argv[0])
    case = Case(**fields | {"settings": tuple(fields["settings"])})
    try:
        result = compile_case(case)
    except InputError as error:
        result = {"error": str(error)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
