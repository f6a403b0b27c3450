"""The compiled sampling program, and what goes into it and comes out of it: noise, conditions, tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.gaussian import noise_level
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.errors import InputError, NotFinite
from pixart_jax.rng import seed_words, stream_key
from pixart_jax.samplers.blame import first_fault
from pixart_jax.samplers.guidance import branches, guided
from pixart_jax.samplers.iddpm import per_sample_noise
from pixart_jax.samplers.steps import Apply, Correct, Sampler, Stateful, stateful

Conditions = Mapping[str, np.ndarray]

# (params, conditions of a batch) -> what the model is given in their place.
Prepare = Callable[[Any, Mapping], Mapping]

# (params, noise f32[B, N, p·p·C], key of each picture's later noise [B], conditions, null conditions, guidance_scale,
# start tokens f32[B, N, p·p·C] or None, correct or None, guidance interval f32[2] or None, see `guidance.guide`) ->
# (tokens f32[B, N, p·p·C], `steps.faults` of each of S steps i32[B, S])
SampleFn = Callable[..., tuple[jax.Array, jax.Array]]

# Of a model that was trained to do without some of its blocks; no other can: the null branch goes without them.
DROPPED_PATH = "path_drop"
GUIDANCES = ("cfg", DROPPED_PATH, "none")
# Of a model that takes the guidance as an input; no other can.
EMBEDDED = "embedded"


def check_guidance(name: str) -> None:
    """Raises InputError unless it is one of GUIDANCES, or EMBEDDED."""
    if name not in (*GUIDANCES, EMBEDDED):
        raise InputError(f"guidance = {name!r}: must be one of {', '.join(GUIDANCES)}")


def as_they_are(params: Any, conditions: Mapping) -> Mapping:
    """The `Prepare` that leaves the conditions alone."""
    return conditions


def branches_of(
    guidance: str, conditions: Mapping, null: Mapping, *, prepare: Callable[[Mapping], Mapping], alone: bool
) -> dict[str, Mapping]:
    """`guidance.branches` of one of GUIDANCES, or EMBEDDED."""
    wanted = null if guidance in ("cfg", DROPPED_PATH) else None
    return branches(conditions, wanted, prepare=prepare, alone=alone, dropping=guidance == DROPPED_PATH)


def with_params(called: Stateful, params: Any, guidance: str, guidance_scale) -> Stateful:
    """A model as `guidance.guide` takes it: (x, t, conditions, what it is handed) -> (eps, v) and what it hands on."""

    def denoise(x, t, conditions, state):
        told = {"guidance": jnp.full(len(x), guidance_scale - 1.0, jnp.float32)} if guidance == EMBEDDED else {}
        return called.call(params, x, t, state, **told, **conditions)

    return Stateful(denoise, called.begin)


def make_sample_fn(
    apply: Apply | Stateful,
    schedule: DiffusionSchedule | FlowSchedule,
    sampler: Sampler,
    *,
    guidance: str = "cfg",
    prepare: Prepare = as_they_are,
) -> jax.stages.Wrapped:
    """The sampling program, a `SampleFn`: one compilation per batch shape serves all prompts, seeds, guidance scales
    and aspect ratios.

    Its conditions are the model's keyword arguments, with `text_drop` False; its null conditions are those that differ
    in guidance's other branch. Where it is given start tokens, clean ones, it draws from these with the noise of the
    sampler's first timestep: image-to-image. `correct` is a `samplers.steps.Correct` that jit takes as an argument: a
    `jax.tree_util.Partial` over arrays of leading axis B.

    Args:
      apply: the model; a `Stateful` one's `call` takes (params, tokens, t, what it is handed, **conditions).
      prepare: what the model is given in place of a batch's conditions, once for all steps.
      guidance: one of GUIDANCES, or EMBEDDED. "cfg" calls the model with both branches; DROPPED_PATH with each apart,
        the null one with the condition `guidance.PATH_DROPPED`; "none" with the conditions alone, which is half the
        work, and ignores null conditions and scale; EMBEDDED likewise, and with one more: `guidance` f32[B], the scale
        less 1.
    """
    check_guidance(guidance)
    called = stateful(apply)

    def sample(
        params, noise, keys, conditions, null, guidance_scale, start_tokens=None, correct=None, guidance_interval=None
    ):
        x = noise
        if start_tokens is not None:
            alpha, sigma = noise_level(schedule, sampler.first_t)
            x = alpha * start_tokens + sigma * noise
        alone, ready = guidance_interval is not None, functools.partial(prepare, params)
        denoiser = guided(
            with_params(called, params, guidance, guidance_scale),
            branches_of(guidance, conditions, null, prepare=ready, alone=alone),
            guidance_scale,
            guidance_interval,
        )
        tokens, found = sampler.run(denoiser, x, per_sample_noise(keys, noise.shape[1:]), correct)
        return tokens, found.T

    return jax.jit(sample)


@functools.partial(jax.jit, static_argnums=2)
def draw_noise(seed, indices, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """What pictures start from: noise f32[B, *shape] and the key [B] of each one's later noise.

    Both depend on the seed and on a picture's own index, not on the batch that it is drawn in.

    Args:
      seed: `rng.seed_words` of it, u32[2], or of each picture's own, u32[B, 2].
    """

    def key(words, index):
        return jax.random.fold_in(stream_key(words, "sample"), index)

    keys = jax.vmap(key, in_axes=(0 if seed.ndim == 2 else None, 0))(seed, indices)
    start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(start_keys), step_keys


def words_of(seed: int | Sequence[int]) -> np.ndarray:
    """What `draw_noise` takes of one seed, u32[2], or of each of n, u32[n, 2]."""
    return seed_words(seed) if isinstance(seed, int | np.integer) else np.stack([*map(seed_words, seed)])


def sample_in_batches(
    sample_fn: SampleFn,
    params,
    conditions: Conditions,
    null: Conditions,
    *,
    token_dim: int,
    seed: int | Sequence[int],
    indices: np.ndarray,
    guidance_scale: float,
    batch_size: int,
    noise: np.ndarray | None = None,
    start_tokens: np.ndarray | None = None,
    correct: Correct | None = None,
    guidance_interval: tuple[float, float] | None = None,
    place: Callable[[Any], Any] = lambda batch: batch,
    fetch: Callable[[jax.Array], np.ndarray] = jax.device_get,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Runs `sample_fn` over any number of pictures with one batch shape; the last batch is filled up and cut.

    Args:
      conditions, null: arrays of leading axis n.
      token_dim: p·p·C.
      seed: of all, or of each of the n.
      indices: i[n], which noise of its seed each picture starts from.
      noise: f32[n, N, p·p·C] instead of the seeds'.
      start_tokens, correct: see `make_sample_fn`; f32[n, N, p·p·C], and arrays of leading axis n.
      guidance_interval: timesteps from the first to the second are guided; None guides all.
      place: puts the arrays of a batch on devices.
      fetch: brings a batch's tokens back.
      progress: told after each batch how many of the n are drawn.

    Returns:
      tokens f32[n, N, p·p·C].

    Raises:
      NotFinite: a picture holds NaN or infinity; says which step and part had it first, and why.
    """
    count, shape = len(indices), (conditions["positions"].shape[1], token_dim)
    indices = np.asarray(indices, np.int32)
    words = words_of(seed)
    rows = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1).reshape(-1, batch_size)
    interval = None if guidance_interval is None else np.asarray(guidance_interval, np.float32)
    parts = []
    for row in rows:
        x, keys = draw_noise(words if words.ndim == 1 else words[row], indices[row], shape)
        x = x if noise is None else noise[row]
        x, keys, given, *rest = place((x, keys, *_rows((conditions, null, start_tokens, correct), row)))
        # Fetched batch by batch: what waits on the device would otherwise grow with their number.
        tokens, found = sample_fn(params, x, keys, given, rest[0], guidance_scale, *rest[1:], interval)
        parts.append(fetch(tokens))
        if not np.isfinite(parts[-1][np.arange(shape[0]) < conditions["num_tokens"][row][:, None]]).all():
            branches = _rows(dict(conditions), row), _rows(dict(null), row)
            raise NotFinite(first_fault(fetch(found), params, *branches, guidance_scale))
        progress(min(count, batch_size * len(parts)))
    return np.concatenate(parts)[:count]


def _rows(tree, row):
    """Some rows of every array of a tree."""
    return jax.tree.map(lambda value: value[row], tree)
