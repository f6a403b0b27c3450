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

from pixart_jax.adapters.adapter import Params
from pixart_jax.data.buckets import Bucket
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.decoding import fit
from pixart_jax.devices.sharding import batch_sharding
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.encoding.pretrained import TILE_SIZE
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from pixart_jax.generation.adaptation import Adaptation, adapted
from pixart_jax.generation.canvas import Canvas
from pixart_jax.generation.opening import open_parts
from pixart_jax.generation.request import Progress, Request
from pixart_jax.models.layers import Dtype
from pixart_jax.models.params import apply_of
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import SampleFn, make_sample_fn, sample_in_batches
from pixart_jax.samplers.steps import Apply
from pixart_jax.tokens import DOWNSAMPLE, block_order, grid_positions, latents_to_tokens, tokens_to_latents


@dataclasses.dataclass(frozen=True, eq=False)
class TextToImage:
    """Prompts to pictures with a model, its text encoder and its autoencoder.

    Attributes:
      model: the denoiser's architecture.
      apply, weights: what is called for a prediction, and what gives its parameters on `mesh`.
      mesh: devices that pictures are spread over; their number rounds batches up.
      position_base, position_scale: see `tokens.grid_positions`.
      latent_scale: what latents were multiplied by in training.
      has_null_text: whether the parameters hold the null caption of guidance; otherwise it is the text encoder's
        features of the empty caption, as in diffusers.
      encode_text: (n captions, told how many are done) -> (text [n, L, text_dim], length i32[n]).
      decode_latents: (latents [n, h, w, C], told how many are done) -> pictures [n, H, W, 3] in [-1, 1].
      caption_cleaning: a key of `captions.CLEANING`; what captions went through in training.
      sampler, num_steps, guidance_scale, guidance: what a request uses unless it says otherwise.
    """

    model: PixArt
    apply: Apply
    weights: Callable[[], Params]
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
    guidance: str = "cfg"

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
        adapters: Sequence[Adaptation] = (),
        wrap: Callable[[Apply], Apply] = lambda apply: apply,
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
          adapters: laid over the model, one after the other.
          wrap: takes the adapted model, and gives what is called in its place: to cache, to quantise, to watch.

        Raises:
          InputError: not a model with captions, no checkpoint yet, an encoder is missing, or the parts do not belong
            together.
        """
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        fields = open_parts(
            pathlib.Path(directory),
            ema=ema,
            text_encoder=text_encoder,
            vae=vae,
            dtype=dtype,
            keep_loaded=keep_loaded,
            tile_size=tile_size,
        )
        apply, weights = adapted(apply_of(fields["model"]), fields["weights"], adapters)
        return cls(**fields | {"apply": wrap(apply), "weights": weights})

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        progress: Progress = lambda stage, done, total: None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws pictures of prompts: `draw` of a `Request`, of which `settings` are the attributes."""
        return self.draw(Request(prompts, **settings), progress)

    def draw(self, request: Request, progress: Progress = lambda stage, done, total: None) -> np.ndarray:
        """Draws what is asked for.

        Args:
          progress: told what is being done and how far it is.

        Returns:
          uint8[n, height, width, 3], n = len(prompts)·num_images, the pictures of one prompt side by side.

        Raises:
          InputError: a setting that is out of range or unknown.
        """
        canvas, count = request.canvas(self.resolution), request.count
        sample_fn = self._sample_fn(
            request.sampler or self.sampler,
            self.num_steps if request.num_steps is None else request.num_steps,
            request.start.start,
            request.guidance or self.guidance,
        )
        noise = None if request.noise is None else self._to_tokens("noise has", request.noise, request)
        layout = self._layout(canvas, count)
        text, null = self._encode(request, progress)
        conditions = layout | text
        patch_size, block_ratio = self.model.patch_size, self._block_ratio
        tokens = sample_in_batches(
            sample_fn,
            self.weights(),
            conditions,
            null_branch(conditions) | null,
            token_dim=patch_size**2 * self.model.latent_channels,
            seed=request.seed,
            indices=np.tile(np.arange(request.num_images), len(request.prompts)),
            guidance_scale=self.guidance_scale if request.guidance_scale is None else request.guidance_scale,
            batch_size=-(-min(request.batch_size, count) // self.mesh.size) * self.mesh.size,
            noise=noise,
            start_tokens=request.start.tokens,
            correct=request.start.correct,
            place=lambda arrays: jax.device_put(arrays, batch_sharding(self.mesh)),
            progress=lambda done: progress("drawing", done, count),
        )
        rows, columns, _ = self._latent_shape(canvas)
        grid = (rows // patch_size, columns // patch_size)
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

    def tokens_of(self, latents: np.ndarray, request: Request) -> np.ndarray:
        """Unscaled latents f32[n, h, w, C] as the tokens f32[n, N, p·p·C] that a request's `Start` takes.

        Raises:
          InputError: they are not of the request's number and size.
        """
        return self._to_tokens("latents have", latents * self.latent_scale, request)

    def _to_tokens(self, what: str, latents: np.ndarray, request: Request) -> np.ndarray:
        canvas = request.canvas(self.resolution)
        expected = (request.count, *self._latent_shape(canvas))
        if latents.shape != expected:
            raise InputError(f"{what} shape {latents.shape}, these pictures start from {expected}")
        num_tokens = (canvas.size // (DOWNSAMPLE * self.model.patch_size)) ** 2
        return latents_to_tokens(np.asarray(latents, np.float32), self.model.patch_size, num_tokens, self._block_ratio)

    @property
    def _block_ratio(self) -> int:
        return max(self.model.kv_compress, default=1)

    def _encode(self, request: Request, progress: Progress) -> tuple[dict, dict]:
        """The text conditions of both branches."""
        negative_prompt = request.negative_prompt
        clean = CLEANING[self.caption_cleaning]
        prompts = [clean(prompt) for prompt in request.prompts]
        if negative_prompt is None and not self.has_null_text:
            negative_prompt = ""
        distinct = [*dict.fromkeys([*prompts, *([] if negative_prompt is None else [clean(negative_prompt)])])]
        text, length = self.encode_text(distinct, lambda done: progress("reading", done, len(distinct)))

        def conditions(captions):
            rows = np.repeat([distinct.index(caption) for caption in captions], request.num_images)
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
        order = block_order(grid, self._block_ratio)
        positions = grid_positions(grid, self.position_base, self.position_scale)[order]
        padded = np.zeros(((canvas.size // unit) ** 2, 2), np.float32)
        padded[: len(positions)] = positions
        return {
            "positions": np.tile(padded, (count, 1, 1)),
            "num_tokens": np.full(count, len(positions), np.int32),
            "image_size": np.tile(np.array([bucket.height, bucket.width], np.float32), (count, 1)),
            # The label, which the reference trains on and samples with; diffusers takes the quotient of the sides.
            "aspect_ratio": np.full((count, 1), bucket.label, np.float32),
        }

    def _latent_shape(self, canvas: Canvas) -> tuple[int, int, int]:
        return canvas.bucket.height // DOWNSAMPLE, canvas.bucket.width // DOWNSAMPLE, self.model.latent_channels

    @functools.lru_cache(maxsize=8)  # noqa: B019 - keeps compiled programs for as long as the object that owns them
    def _sample_fn(self, sampler: str, num_steps: int, start: float, guidance: str) -> SampleFn:
        schedule = linear_schedule()
        built = build_sampler(sampler, schedule, num_steps, start=start)
        return make_sample_fn(self.apply, schedule, built, guidance=guidance)
