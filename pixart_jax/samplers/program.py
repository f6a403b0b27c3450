"""The compiled sampling program, and what goes into it and comes out of it: noise, conditions, tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide
from pixart_jax.samplers.iddpm import per_sample_noise

Conditions = Mapping[str, np.ndarray]

# (params, noise f32[B, N, p·p·C], key of each picture's later noise [B], conditions, null conditions, guidance_scale)
# -> tokens f32[B, N, p·p·C]
SampleFn = Callable[[Any, jax.Array, jax.Array, Conditions, Conditions, float], jax.Array]


def make_sample_fn(model: PixArt, schedule: DiffusionSchedule, sampler: str, num_steps: int) -> SampleFn:
    """The sampling program: one compilation per batch shape serves all prompts, seeds, guidance scales and aspect
    ratios.

    Its conditions are the model's keyword arguments, with `text_drop` False; its null conditions are those that differ
    in guidance's other branch.

    Raises:
      InputError: unknown sampler, or a number of steps that it cannot take.
    """
    run = build_sampler(sampler, schedule, num_steps)

    def sample(params, noise, keys, conditions, null, guidance_scale):
        def denoise(x, t, conditions):
            return model.apply({"params": params}, x, t, **conditions)

        denoiser = guide(denoise, conditions, null, guidance_scale)
        return run(denoiser, noise, per_sample_noise(keys, noise.shape[1:]))

    return jax.jit(sample)


@functools.partial(jax.jit, static_argnums=2)
def draw_noise(seed, indices, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """What pictures start from: noise f32[B, *shape] and the key [B] of each one's later noise.

    Both depend on the seed and on a picture's own index, not on the batch that it is drawn in.
    """
    keys = jax.vmap(lambda index: jax.random.fold_in(stream_key(seed, "sample"), index))(indices)
    start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(start_keys), step_keys


def sample_in_batches(
    sample_fn: SampleFn,
    params,
    conditions: Conditions,
    null: Conditions,
    *,
    token_dim: int,
    seed: int,
    indices: np.ndarray,
    guidance_scale: float,
    batch_size: int,
    noise: np.ndarray | None = None,
    place: Callable[[Any], Any] = lambda batch: batch,
    fetch: Callable[[jax.Array], np.ndarray] = jax.device_get,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Runs `sample_fn` over any number of pictures with one batch shape; the last batch is filled up and cut.

    Args:
      conditions, null: arrays of leading axis n.
      token_dim: p·p·C.
      indices: i[n], which noise of the seed each picture starts from.
      noise: f32[n, N, p·p·C] to start from instead.
      place: puts the arrays of a batch on devices.
      fetch: brings a batch's tokens back.
      progress: told after each batch how many of the n are drawn.

    Returns:
      tokens f32[n, N, p·p·C].
    """
    count, shape = len(indices), (conditions["positions"].shape[1], token_dim)
    indices = np.asarray(indices, np.int32)
    rows = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1).reshape(-1, batch_size)
    parts = []
    for row in rows:
        x, keys = draw_noise(seed, indices[row], shape)
        x = x if noise is None else noise[row]
        batch = ({name: value[row] for name, value in part.items()} for part in (conditions, null))
        x, keys, *batch = place((x, keys, *batch))
        # Fetched batch by batch: what waits on the device would otherwise grow with their number.
        parts.append(fetch(sample_fn(params, x, keys, *batch, guidance_scale)))
        progress(min(count, batch_size * len(parts)))
    return np.concatenate(parts)[:count]
