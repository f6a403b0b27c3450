"""Prompts to pictures, as a library call: text encoder, denoiser and autoencoder one after the other.

from pixart_jax.generation.pipeline import TextToImage

pipeline = TextToImage.from_checkpoint("weights/sigma-1024")
images = pipeline(["a lighthouse in fog"], aspect_ratio="16:9", seed=1)   # uint8[1, 768, 1344, 3]
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.decoding import fit
from pixart_jax.devices.sharding import batch_sharding, make_mesh
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.encoding.pretrained import TILE_SIZE, Autoencoder, T5TextEncoder, local_mesh
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from pixart_jax.generation.canvas import Canvas, choose_canvas
from pixart_jax.generation.opening import open_converted, open_run
from pixart_jax.models.layers import Dtype
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import SampleFn, make_sample_fn, sample_in_batches
from pixart_jax.tokens import (
    DOWNSAMPLE,
    block_order,
    grid_positions,
    latents_to_tokens,
    same_latent_scale,
    tokens_to_latents,
)

# (what is being done, how many are done, of how many)
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TextToImage:
    """Prompts to pictures with a model, its text encoder and its autoencoder.

    Attributes:
      model, weights: the denoiser, and what gives its parameters on `mesh`.
      mesh: devices that pictures are spread over; their number rounds batches up.
      position_base, position_scale: see `tokens.grid_positions`.
      latent_scale: what latents were multiplied by in training.
      has_null_text: whether the parameters hold the null caption of guidance; otherwise it is the text encoder's
        features of the empty caption, as in diffusers.
      encode_text: (n captions, told how many are done) -> (text [n, L, text_dim], length i32[n]).
      decode_latents: (latents [n, h, w, C], told how many are done) -> pictures [n, H, W, 3] in [-1, 1].
      caption_cleaning: a key of `captions.CLEANING`; what captions went through in training.
      sampler, num_steps, guidance_scale: what a call uses unless it says otherwise.
    """

    model: PixArt
    weights: Callable[[], Any]
    mesh: jax.sharding.Mesh
    position_base: int
    position_scale: float
    latent_scale: float
    has_null_text: bool
    encode_text: Callable[[Sequence[str], Callable[[int], None]], tuple[np.ndarray, np.ndarray]]
    decode_latents: Callable[[np.ndarray, Callable[[int], None]], np.ndarray]
    caption_cleaning: str
    sampler: str
    num_steps: int = 20
    guidance_scale: float = 4.5

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | pathlib.Path,
        *,
        ema: bool | None = None,
        text_encoder: str | pathlib.Path | None = None,
        vae: str | pathlib.Path | None = None,
        dtype: Dtype | None = None,
        keep_loaded: bool = False,
        tile_size: int = TILE_SIZE,
    ) -> TextToImage:
        """Opens what `tools.convert` wrote, or a training run.

        Args:
          directory: a converted model, or the workdir of a run, whose newest checkpoint is taken.
          ema: of a run: the averaged weights (the default), or the raw ones.
          text_encoder, vae: directories that `tools.convert` wrote, where the model's own has none; None takes its own.
          dtype: of matrix products; None is bfloat16 on accelerators and float32 on a CPU.
          keep_loaded: leave all three models on the devices between calls. Otherwise each is loaded when it is its turn
            and gone after, so that the largest alone decides how much memory is needed.
          tile_size: latent cells along a side of the square up to which pictures are decoded at once.

        Raises:
          InputError: not a model with captions, no checkpoint yet, an encoder is missing, or the parts do not belong
            together.
        """
        directory = pathlib.Path(directory)
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        mesh = make_mesh(devices=jax.local_devices())
        if (directory / "model.json").exists():
            fields = open_converted(directory, ema, mesh, dtype, keep_loaded)
            text_encoder, vae = text_encoder or directory / "text_encoder", vae or directory / "vae"
            for part, option in ((text_encoder, "text_encoder"), (vae, "vae")):
                if not pathlib.Path(part).is_dir():
                    raise InputError(
                        f"{part} does not exist: the weights came without it; convert one with tools.convert and name "
                        f"its directory (--{option.replace('_', '-')})"
                    )
        else:
            given = {"text_encoder": text_encoder, "vae": vae}
            fields = open_run(directory, ema is not False, mesh, dtype, keep_loaded, given)
        model: PixArt = fields["model"]
        if model.num_classes:
            raise InputError(f"{directory}: the model knows {model.num_classes} classes and no captions")
        parts = {"dtype": dtype, "keep": keep_loaded}
        if text_encoder:
            encoder = T5TextEncoder(text_encoder, max_tokens=model.max_text_tokens, mesh=local_mesh(), **parts)
            fields["encode_text"] = encoder.encode
            if encoder.dim != model.text_dim:
                raise InputError(
                    f"{text_encoder} gives features {encoder.dim} wide, the model of {directory} takes {model.text_dim}"
                )
        if vae:
            autoencoder = Autoencoder(vae, mesh=mesh, tile_size=tile_size, **parts)
            fields["decode_latents"] = autoencoder.decode
            if autoencoder.latent_channels != model.latent_channels:
                raise InputError(
                    f"{vae} has latents of {autoencoder.latent_channels} channels, the model of {directory} of "
                    f"{model.latent_channels}"
                )
            if not same_latent_scale(autoencoder.latent_scale, fields["latent_scale"]):
                raise InputError(
                    f"{vae} is another autoencoder than that of {directory}: its latent scale is "
                    f"{autoencoder.latent_scale:g}, the model's {fields['latent_scale']:g} (0.18215 is Stable "
                    "Diffusion's, for PixArt-α; 0.13025 SDXL's, for PixArt-Σ)"
                )
        return cls(mesh=mesh, **fields)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str | None = None,
        num_images: int = 1,
        seed: int = 0,
        sampler: str | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        size: int | None = None,
        aspect_ratio: str | None = None,
        height: int | None = None,
        width: int | None = None,
        noise: np.ndarray | None = None,
        batch_size: int = 4,
        progress: Progress = lambda stage, done, total: None,
    ) -> np.ndarray:
        """Draws `num_images` pictures of each prompt.

        The same prompt, seed and settings give the same pictures, whatever else is drawn in the same call, the batch
        size and the number of devices: the k-th picture of every prompt starts from the seed's k-th noise.

        Args:
          prompts: captions as a person writes them; they are cleaned as in training.
          negative_prompt: what guidance moves away from, instead of the null caption.
          size, aspect_ratio, height, width: see `choose_canvas`.
          noise: f32[n, h, w, C] to start from instead of the seed's.
          batch_size: pictures drawn at a time; one program is compiled for each batch size, not for anything else.
          progress: told what is being done and how far it is.

        Returns:
          uint8[n, height, width, 3], n = len(prompts)·num_images, the pictures of one prompt side by side.

        Raises:
          InputError: a setting that is out of range or unknown.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError("prompts must be a list of at least one caption")
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        canvas = choose_canvas(self.resolution, size=size, aspect_ratio=aspect_ratio, height=height, width=width)
        sample_fn = self._sample_fn(sampler or self.sampler, self.num_steps if num_steps is None else num_steps)
        count = len(prompts) * num_images
        layout = self._layout(canvas, count)
        text, null = self._encode(prompts, negative_prompt, num_images, progress)
        conditions = layout | text
        patch_size, block_ratio = self.model.patch_size, max(self.model.kv_compress, default=1)
        if noise is not None:
            num_tokens = layout["positions"].shape[1]
            expected = (count, *self._latent_shape(canvas))
            if noise.shape != expected:
                raise InputError(f"noise has shape {noise.shape}, these pictures start from {expected}")
            noise = latents_to_tokens(np.asarray(noise, np.float32), patch_size, num_tokens, block_ratio)
        tokens = sample_in_batches(
            sample_fn,
            self.weights(),
            conditions,
            null_branch(conditions) | null,
            token_dim=patch_size**2 * self.model.latent_channels,
            seed=seed,
            indices=np.tile(np.arange(num_images), len(prompts)),
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            batch_size=-(-min(batch_size, count) // self.mesh.size) * self.mesh.size,
            noise=noise,
            place=lambda arrays: jax.device_put(arrays, batch_sharding(self.mesh)),
            progress=lambda done: progress("drawing", done, count),
        )
        grid = tuple(side // patch_size for side in self._latent_shape(canvas)[:2])
        latents = tokens_to_latents(tokens, grid, patch_size, self.latent_scale, block_ratio)
        pictures = to_uint8(self.decode_latents(latents, lambda done: progress("decoding", done, count)))
        if (canvas.height, canvas.width) == pictures.shape[1:3]:
            return pictures
        target = Bucket(canvas.bucket.label, canvas.height, canvas.width)
        return np.stack([fit(Image.fromarray(picture), target) for picture in pictures])

    @property
    def resolution(self) -> int:
        """Pixels along one side of the square that the model was trained at."""
        return self.position_base * self.model.patch_size * DOWNSAMPLE

    def _encode(self, prompts, negative_prompt, num_images, progress) -> tuple[dict, dict]:
        """The text conditions of both branches."""
        clean = CLEANING[self.caption_cleaning]
        prompts = [clean(prompt) for prompt in prompts]
        if negative_prompt is None and not self.has_null_text:
            negative_prompt = ""
        distinct = [*dict.fromkeys([*prompts, *([] if negative_prompt is None else [clean(negative_prompt)])])]
        text, length = self.encode_text(distinct, lambda done: progress("reading", done, len(distinct)))

        def conditions(captions):
            rows = np.repeat([distinct.index(caption) for caption in captions], num_images)
            return {"text": text[rows], "text_length": length[rows], "text_drop": np.zeros(len(rows), bool)}

        positive = conditions(prompts)
        if negative_prompt is None:
            # As large as a negative prompt's, so that one program serves both.
            return positive, {**positive, **null_branch(positive)}
        return positive, conditions([clean(negative_prompt)] * len(prompts))

    def _layout(self, canvas: Canvas, count: int) -> dict[str, np.ndarray]:
        """The conditions that say where the tokens of `count` pictures are, and α's micro-conditions."""
        bucket, unit = canvas.bucket, DOWNSAMPLE * self.model.patch_size
        grid = (bucket.height // unit, bucket.width // unit)
        order = block_order(grid, max(self.model.kv_compress, default=1))
        positions = grid_positions(grid, self.position_base, self.position_scale)[order]
        padded = np.zeros(((canvas.size // unit) ** 2, 2), np.float32)
        padded[: len(positions)] = positions
        return {
            "positions": np.tile(padded, (count, 1, 1)),
            "num_tokens": np.full(count, len(positions), np.int32),
            "image_size": np.tile(np.float32([bucket.height, bucket.width]), (count, 1)),
            # The label, which the reference trains on and samples with; diffusers takes the quotient of the sides.
            "aspect_ratio": np.full((count, 1), bucket.label, np.float32),
        }

    def _latent_shape(self, canvas: Canvas) -> tuple[int, int, int]:
        return canvas.bucket.height // DOWNSAMPLE, canvas.bucket.width // DOWNSAMPLE, self.model.latent_channels

    @functools.lru_cache(maxsize=8)  # noqa: B019 - keeps compiled programs for as long as the object that owns them
    def _sample_fn(self, sampler: str, num_steps: int) -> SampleFn:
        return make_sample_fn(self.model, linear_schedule(), sampler, num_steps)
