"""The training step's speed, FLOPs and memory.

Imports only jax, flax, optax, einops, numpy and this package's core, so that it runs on an accelerator image as it is.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.config import (
    build_model,
    check_attention,
    check_batch,
    check_config,
    mesh_spec,
    optimizer_spec,
    override,
    position_base,
    read_config_file,
)
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.flops import step_flops
from pixart_jax.hardware import find_hardware
from pixart_jax.losses import LossFn, diffusion_loss
from pixart_jax.models.pixart import PixArt
from pixart_jax.optimizers import build_optimizer, learning_rate_schedule
from pixart_jax.sharding import batch_sharding, make_mesh, put_batch
from pixart_jax.tokens import block_order, grid_positions
from pixart_jax.train_state import abstract_state, create_state
from pixart_jax.train_step import make_train_step


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of the command line's config."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench --what=train", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a file of configs/; --config.key=value changes it")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    args, settings = parser.parse_known_args(argv)
    config = read_config_file(args.config)
    if args.steps < 1:
        raise InputError(f"--steps={args.steps}: must be at least 1")
    for setting in settings:
        override(config, setting)
    yield {"config": args.config, "overrides": settings, **bench_train(config, args.steps)}


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
    return out | {
        "text": text.astype(jnp.float32 if config.dtype == "float32" else jnp.bfloat16),
        "text_length": rng.integers(1, model.max_text_tokens + 1, batch).astype(np.int32),
    }


def synthetic_shapes(config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of `synthetic_batch`, which is not made for them."""
    return {
        name: jax.ShapeDtypeStruct(
            (config.data.batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(mesh, name)
        )
        for name, value in synthetic_batch(config, batch_size=1).items()
    }


def make_loss(config, model: PixArt) -> LossFn:
    return diffusion_loss(model.apply, linear_schedule(), snr=config.train.snr_loss)


def lower_train_step(config, mesh: Mesh) -> jax.stages.Lowered:
    """The training step that `pixart_jax.train` compiles, for a mesh whose devices need not be this machine's."""
    model, optimizer = build_model(config, mesh), optimizer_spec(config)
    tx = build_optimizer(optimizer)
    step = make_train_step(
        make_loss(config, model),
        tx,
        seed=config.seed,
        ema_decay=config.train.ema_decay,
        accumulation_steps=config.train.accumulation_steps,
        learning_rate=learning_rate_schedule(optimizer),
    )
    abstract = abstract_state(model, tx, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(
        abstract, synthetic_shapes(config, mesh)
    )


def bench_train(config, steps: int) -> dict:
    """The training step that `pixart_jax.train` compiles, on a synthetic batch already on the devices.

    FLOPs are those of `pixart_jax.flops.step_flops`; `mfu` is their rate as a share of the devices' peak, None where
    `pixart_jax.hardware` does not know it.
    """
    check_config(config)
    check_batch(config, jax.device_count())
    check_attention(config, jax.devices()[0])
    mesh = make_mesh(mesh_spec(config))
    lowered = lower_train_step(config, mesh)
    flops = step_flops(build_model(config), functools.partial(make_loss, config), synthetic_shapes(config, mesh))
    begin = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begin

    state = create_state(build_model(config, mesh), build_optimizer(optimizer_spec(config)), mesh, config.seed)
    batch = put_batch(synthetic_batch(config), mesh)
    for _ in range(2):  # The first calls allocate.
        state, metrics = compiled(state, batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    loss = float(metrics["loss"])
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begin) / steps
    rate = flops / seconds if flops else None
    hardware = find_hardware(jax.devices()[0].device_kind)
    memory = compiled.memory_analysis()
    return {
        "images_per_second": config.data.batch_size / seconds,
        "seconds_per_step": seconds,
        "model_flops_per_step": flops,
        "model_flops_per_second": rate,
        "mfu": hardware.utilisation(rate, jax.device_count()) if rate and hardware else None,
        "compile_seconds": compile_seconds,
        # Per device, from the compiler; absent where it does not say.
        "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
        "scratch_bytes": getattr(memory, "temp_size_in_bytes", None),
        "batch_size": config.data.batch_size,
        "tokens": position_base(config) ** 2,
        "steps": steps,
        "loss": loss,
    }
