"""From conditions to pictures: the compiled sampling program, and the library call around it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.checkpoints import Checkpoints
from pixart_jax.config import build_model, load_config, position_base
from pixart_jax.data.feature_shards import read_manifest
from pixart_jax.diffusion.schedule import DiffusionSchedule, linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.features import load_autoencoder, load_text_encoder
from pixart_jax.models.pixart import PixArt
from pixart_jax.rng import stream_key
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import guide, null_branch
from pixart_jax.samplers.iddpm import per_sample_noise
from pixart_jax.sharding import make_mesh
from pixart_jax.tokens import DOWNSAMPLE, block_order, grid_positions, unpatchify
from pixart_jax.train_state import abstract_params

# Where a run keeps the encoders of its (first) data set, below its workdir.
ENCODERS = "encoders"

# (params, conditions, seed, indices i32[B], guidance_scale) -> tokens f32[B, N, p·p·C]
SampleFn = Callable[[Any, dict[str, jax.Array], int, jax.Array, float], jax.Array]


def make_sample_fn(model: PixArt, schedule: DiffusionSchedule, sampler: str, num_steps: int) -> SampleFn:
    """The sampling program: one compilation per batch shape serves all prompts, seeds, guidance scales and aspect
    ratios.

    A picture's noise depends on the seed and on its own index, not on the batch it is drawn in. `conditions` are the
    model's keyword arguments, with `text_drop` False; seed and guidance_scale are traced scalars.
    """
    run = build_sampler(sampler, schedule, num_steps)
    token_dim = model.patch_size**2 * model.latent_channels

    def sample(params, conditions, seed, indices, guidance_scale):
        shape = (conditions["positions"].shape[1], token_dim)
        keys = jax.vmap(lambda index: jax.random.fold_in(stream_key(seed, "sample"), index))(indices)
        start_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        x = jax.vmap(lambda key: jax.random.normal(key, shape))(start_keys)

        def denoise(x, t, conditions):
            return model.apply({"params": params}, x, t, **conditions)

        denoiser = guide(denoise, conditions, null_branch(conditions), guidance_scale)
        return run(denoiser, x, per_sample_noise(step_keys, shape))

    return jax.jit(sample)


def tokens_to_latents(
    tokens: np.ndarray, grid: tuple[int, int], patch_size: int, latent_scale: float, block_ratio: int = 1
) -> np.ndarray:
    """One picture's tokens f32[N, p·p·C], padding included, back to unscaled latents f32[h, w, C]."""
    tokens = np.asarray(tokens[: grid[0] * grid[1]], np.float32)
    if block_ratio > 1:
        tokens = tokens[np.argsort(block_order(grid, block_ratio))]
    return unpatchify(tokens, grid, patch_size) / latent_scale


def sample_in_batches(
    sample_fn: SampleFn,
    params,
    conditions: dict[str, np.ndarray],
    *,
    seed: int,
    indices: np.ndarray,
    guidance_scale: float,
    batch_size: int,
) -> np.ndarray:
    """Runs `sample_fn` over any number of pictures with one batch shape; the last batch is filled up and cut.

    Args:
      conditions: arrays of leading axis n.
      indices: i[n], which picture of the seed each one is.

    Returns:
      tokens f32[n, N, p·p·C].
    """
    count = len(indices)
    indices = np.asarray(indices, np.int32)
    rows = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1).reshape(-1, batch_size)
    parts = [
        sample_fn(params, {name: value[row] for name, value in conditions.items()}, seed, indices[row], guidance_scale)
        for row in rows
    ]
    return np.concatenate(jax.device_get(parts))[:count]


def stack_examples(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Conditions of several pictures side by side: everything of `data.pipeline.make_example` but the tokens."""
    return {name: np.stack([e[name] for e in examples]) for name in examples[0] if name != "tokens"}


@dataclasses.dataclass(frozen=True, eq=False)
class TextToImage:
    """Prompts to pictures with a trained model, its text encoder and its autoencoder.

    Attributes:
      position_base, position_scale: see `tokens.grid_positions`.
      latent_scale: what latents were multiplied by in training.
      text_encoder: has encode(prompts) -> (text [B, L, text_dim], length i32[B]).
      autoencoder: has decode(latents [B, h, w, C]) -> pictures [B, H, W, 3] in [-1, 1].
      sampler, num_steps, guidance_scale: what a call uses unless it says otherwise.
    """

    model: PixArt
    params: Any
    position_base: int
    position_scale: float
    latent_scale: float
    text_encoder: Any
    autoencoder: Any
    sampler: str
    num_steps: int
    guidance_scale: float

    @classmethod
    def from_workdir(cls, workdir: str, *, ema: bool = True) -> TextToImage:
        """The newest checkpoint of a training run, with the encoders it was trained with.

        Raises:
          InputError: not a run, no checkpoint yet, a class-conditional model, or an encoder is unknown.
        """
        config = load_config(workdir)
        model = build_model(config)
        if model.num_classes:
            raise InputError(f"{workdir}: the model knows {model.num_classes} classes and no captions")
        directory = pathlib.Path(workdir) / ENCODERS
        manifest = read_manifest(directory)
        # One device: sampling a batch does not need the mesh the model was trained on.
        mesh = make_mesh(1, jax.devices()[:1])
        checkpoints = Checkpoints(workdir, read_only=True)
        params = checkpoints.restore_params(abstract_params(model, mesh), ema=ema)
        checkpoints.close()
        return cls(
            model=model,
            params=params,
            position_base=position_base(config),
            position_scale=config.model.position_scale,
            latent_scale=manifest.latent_scale,
            text_encoder=load_text_encoder(directory, manifest),
            autoencoder=load_autoencoder(directory, manifest),
            sampler=config.sample.sampler,
            num_steps=config.sample.num_steps,
            guidance_scale=config.sample.guidance_scale,
        )

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        sampler: str | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Draws one square picture per prompt: f32[n, H, W, 3] in [-1, 1].

        The same seed and place in `prompts` give the same noise, whatever the batch size.

        Raises:
          InputError: unknown sampler or a number of steps it cannot take.
        """
        grid = (self.position_base, self.position_base)
        block_ratio = max(self.model.kv_compress, default=1)
        positions = grid_positions(grid, self.position_base, self.position_scale)[block_order(grid, block_ratio)]
        count, side = len(prompts), self.position_base * self.model.patch_size * DOWNSAMPLE
        text, text_length = self.text_encoder.encode(prompts)
        conditions = {
            "positions": np.tile(positions, (count, 1, 1)),
            "num_tokens": np.full(count, len(positions), np.int32),
            "text": text,
            "text_length": text_length,
            "text_drop": np.zeros(count, bool),
            "image_size": np.full((count, 2), side, np.float32),
            "aspect_ratio": np.ones((count, 1), np.float32),
        }
        tokens = sample_in_batches(
            self._sample_fn(sampler or self.sampler, self.num_steps if num_steps is None else num_steps),
            self.params,
            conditions,
            seed=seed,
            indices=np.arange(count),
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            batch_size=min(batch_size, count),
        )
        latents = [
            tokens_to_latents(row, grid, self.model.patch_size, self.latent_scale, block_ratio) for row in tokens
        ]
        return np.asarray(self.autoencoder.decode(np.stack(latents)))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - keeps compiled programs for as long as the object that owns them
    def _sample_fn(self, sampler: str, num_steps: int) -> SampleFn:
        return make_sample_fn(self.model, linear_schedule(), sampler, num_steps)
