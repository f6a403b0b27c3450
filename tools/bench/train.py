"""The training step: its speed, FLOPs and memory, beside that of diffusers' transformer in PyTorch.

Ours imports only jax, flax, optax, einops, numpy and this package's core, so that it runs on an accelerator image as it
is.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.adapters.aligned import TARGETS
from pixart_jax.config import (
    ConfigDict,
    build_model,
    check_attention,
    check_batch,
    check_offload,
    mesh_spec,
    position_base,
)
from pixart_jax.devices.hardware import find_hardware
from pixart_jax.devices.sharding import batch_sharding, make_mesh, put_batch
from pixart_jax.objectives.distribution_matching import IS_PAIR, NOISE
from pixart_jax.objectives.prior_preservation import IS_PRIOR
from pixart_jax.tokens import block_order, grid_positions
from pixart_jax.training.memory import memory_limit, settle
from pixart_jax.training.program import Program

from .options import make_parser, parse_with_config
from .peer import missing_peer, open_peers, peer_spec
from .rates import matrix_rate, peak_bytes
from .turns import Failed, Figures, compare, time_calls

# Steps before those that are timed: the first calls allocate.
WARM_UP = 2


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of the command line's config."""
    args, config, about = parse_with_config(make_parser(__name__, __doc__, calls=20), argv)
    yield {**about, **bench_train(config, args.steps, args.rounds, args.peer)}


def synthetic_batch(config, seed: int = 0, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """A batch of random numbers with the shapes and dtypes of the config's real one; every image is the square."""
    rng = np.random.default_rng(seed)
    model, base, batch = build_model(config), position_base(config), batch_size or config.data.batch_size
    order = block_order((base, base), config.model.kv_compress_ratio)
    side = float(config.model.resolution)
    out = {
        "tokens": rng.standard_normal((batch, base**2, model.patch_size**2 * model.latent_channels), dtype=np.float32),
        "positions": np.tile(grid_positions((base, base), base, config.model.position_scale)[order], (batch, 1, 1)),
        "num_tokens": np.full(batch, base**2, np.int32),
        "image_size": np.full((batch, 2), side, np.float32),
        "aspect_ratio": np.ones((batch, 1), np.float32),
        "text_drop": rng.random(batch) < config.data.text_drop_prob,
    }
    if model.num_classes:
        return out | {"label": rng.integers(model.num_classes, size=batch).astype(np.int32)}
    text = rng.standard_normal((batch, model.max_text_tokens, model.text_dim), dtype=np.float32)
    out |= {
        "text": text.astype(jnp.float32 if config.dtype == "float32" else jnp.bfloat16),
        "text_length": rng.integers(1, model.max_text_tokens + 1, batch).astype(np.int32),
    }
    if config.adapter.kind == "controlnet":
        out["control"] = rng.standard_normal(out["tokens"].shape, dtype=np.float32)
    return out


def training_batch(config, seed: int = 0, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """A `synthetic_batch` with what the config's objective asks for beside it."""
    batch = synthetic_batch(config, seed, batch_size)
    if config.data.prior_source:
        batch[IS_PRIOR] = np.arange(len(batch["tokens"])) % 2 == 1
    if config.align.weight:
        shape = (*batch["tokens"].shape[:2], config.align.dim)
        dtype = jnp.float32 if config.dtype == "float32" else jnp.bfloat16
        batch[TARGETS] = np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)
    if config.data.pair_source:
        batch[IS_PAIR] = np.arange(len(batch["tokens"])) % 2 == 1
        batch[NOISE] = np.random.default_rng(seed).standard_normal(batch["tokens"].shape, np.float32)
    return batch


def synthetic_shapes(config, mesh: Mesh, make=synthetic_batch) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of what `make` makes, without making it."""
    return {
        name: jax.ShapeDtypeStruct(
            (config.data.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(mesh, name)
        )
        for name, value in make(config, batch_size=1).items()
    }


class TrainProgram:
    """The training step that `pixart_jax.training.loop` compiles, on a synthetic batch that is already on the devices.

    Raises:
      InputError: the config cannot run on these devices.
    """

    def __init__(self, config: ConfigDict, devices: Sequence[jax.Device]):
        check_batch(config, len(devices))
        check_attention(config, devices[0])
        check_offload(config, devices[0])
        self.mesh = make_mesh(mesh_spec(config), devices)
        shapes, limit = synthetic_shapes(config, self.mesh, training_batch), memory_limit(devices[0])
        settled, choice = settle(config, self.mesh, shapes, limit=limit)
        self.remat = choice.policy
        program = Program(settled, self.mesh)
        self.abstract, self.frozen = program.birth.shapes
        # Compiled once, where `fresh` by itself would be for every turn.
        self.create_state = jax.jit(
            program.birth.fresh, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, program.birth.shapes)
        )
        lowered = program.lower(shapes)
        begin = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin
        self.batch = put_batch(training_batch(config), self.mesh)

    def turn(self, steps: int) -> Figures:
        """Seconds per step, and the last loss. The state is made anew and goes at the end."""
        state, frozen = self.create_state()

        def step():
            nonlocal state
            state, metrics = self.compiled(state, frozen, self.batch)
            return metrics["loss"]

        for _ in range(WARM_UP):
            step()
        jax.block_until_ready(state)
        seconds = time_calls(step, steps, lambda _: jax.block_until_ready(state))
        return {"seconds": seconds, "loss": float(step())}


def train_flops(config: ConfigDict) -> float | None:
    """FLOPs of a step, as `pixart_jax.training.flops.gradient_flops` counts them."""
    mesh = make_mesh(mesh_spec(config))
    return Program(config, mesh).flops(synthetic_shapes(config, mesh, training_batch))


def flop_rates(flops: float | None, seconds: float, dtype: str, devices: Sequence[jax.Device]) -> Figures:
    """A call's FLOPs as a rate, and that as a share of two others.

    Returns:
      "utilisation": of the products of large matrices that were measured just now; "mfu": of the vendor's peak, None
      where `pixart_jax.devices.hardware` does not know it. Both None where the FLOPs are.
    """
    measured, hardware = matrix_rate(dtype, devices[0].platform), find_hardware(devices[0].device_kind)
    rate = flops / seconds if flops else None
    return {
        "model_flops": flops,
        "model_flops_per_second": rate,
        "matrix_flops_per_second": measured,
        "utilisation": rate / measured / len(devices) if rate else None,
        "mfu": hardware.utilisation(rate, len(devices)) if rate and hardware else None,
    }


def bench_train(config: ConfigDict, steps: int, rounds: int, peer: str) -> Figures:
    """Ours on all devices, and in turns with it PyTorch's where there is one device."""
    program, batch_size = TrainProgram(config, jax.devices()), config.data.batch_size
    missing = missing_peer(config, jax.device_count()) or missing_training(config)
    theirs = () if missing else (peer_spec(config), training_spec(config, program.remat), synthetic_batch(config))
    with open_peers(peer, missing, "torch_train.Train", *theirs) as (peers, absence):
        for call in peers.values():
            with contextlib.suppress(Failed):  # Its turn says so.
                call("park")
        turns = {name: functools.partial(call, "turn", steps) for name, call in peers.items()}
        figures = compare(functools.partial(program.turn, steps), turns, rounds)
        for name, row in (figures["peer"] or {}).items():
            row["images_per_second"] = batch_size / row["seconds"]
            row["matrix_flops_per_second"] = peers[name]("matrix_rate")
    memory = program.compiled.memory_analysis()
    return {
        "images_per_second": batch_size / figures["seconds"],
        **figures,
        **absence,
        **flop_rates(train_flops(config), figures["seconds"], config.dtype, jax.devices()),
        **peak_bytes(program.compiled, jax.devices()[0]),
        "compile_seconds": program.compile_seconds,
        # Per device, from the compiler; absent where it does not say.
        "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
        "scratch_bytes": getattr(memory, "temp_size_in_bytes", None),
        "dtype": config.dtype,
        "remat": program.remat,
        "batch_size": batch_size,
        "tokens": position_base(config) ** 2,
        "steps": steps,
    }


def missing_training(config: ConfigDict) -> str | None:
    """What of a config's training the peer does not do, or None."""
    for there, what in (
        (config.optimizer.name != "adamw", "an optimizer but AdamW; --config.optimizer.name=adamw"),
        (config.train.accumulation_steps > 1, "accumulation; --config.train.accumulation_steps=1"),
        (config.train.snr_loss, "the loss of config.train.snr_loss"),
        (config.train.min_snr_gamma, "the weights of config.train.min_snr_gamma"),
        (config.objective.kind != "denoising", "the loss of config.objective.kind"),
        (config.data.prior_source, "the second half of config.data.prior_source"),
    ):
        if there:
            return what
    return None


def training_spec(config: ConfigDict, remat: str) -> dict[str, object]:
    """The fields of `torch_train.TrainingSpec`, beside our policy.

    PyTorch checkpoints gradients of whole blocks or not at all. Compiled, it computes elementwise functions again of
    its own accord, which is what "dots" does: beside that and "none" it is left to it.
    """
    fields = ("learning_rate", "b1", "b2", "eps", "weight_decay", "grad_clip")
    return {name: config.optimizer[name] for name in fields} | {
        "ema_decay": config.train.ema_decay,
        "rematerialise": remat in ("attention", "full"),
    }
