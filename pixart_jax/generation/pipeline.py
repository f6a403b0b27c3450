"""Prompts to pictures, as a library call: text encoder, denoiser and autoencoder one after the other."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pixart_jax.data.buckets import Bucket
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.decoding import fit
from pixart_jax.devices.sharding import MeshSpec
from pixart_jax.diffusion.flow import FlowSchedule
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.encoding.pretrained import TILE_SIZE
from pixart_jax.errors import InputError
from pixart_jax.files import local_path
from pixart_jax.generation.adaptation import Adaptation, AdapterFile, adapted
from pixart_jax.generation.canvas import Canvas
from pixart_jax.generation.denoiser import check_path_drop, check_reuse, denoiser_of, eight_bit_parts
from pixart_jax.generation.from_hub import local_model
from pixart_jax.generation.lora import adaptation_of
from pixart_jax.generation.opening import open_parts
from pixart_jax.generation.parts import Parts, as_it_is
from pixart_jax.generation.placing import check_tokens, kept, pictures_at_once, place
from pixart_jax.generation.request import Manner, Progress, Request
from pixart_jax.generation.values import finite_array, whole_number
from pixart_jax.models.layers import Dtype
from pixart_jax.samplers import FEW_STEPS, build_sampler, guidance_of
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import EMBEDDED, draw_noise, sample_in_batches, words_of
from pixart_jax.samplers.steps import Apply, TakeStep
from pixart_jax.samplers.stepwise import Programs, StepwiseSampler, Watch, compile_programs
from pixart_jax.tokens import DOWNSAMPLE, block_order, grid_positions, latents_to_tokens, tokens_to_latents


def _tell_nobody(stage: str, done: int, total: int) -> None:
    """Where nobody asks how far it is."""


class TextToImage:
    """Prompts to pictures with a model, its text encoder and its autoencoder.

    pipeline = TextToImage.from_checkpoint("weights/sigma-1024")   # what tools.convert wrote, or a run's workdir
    images = pipeline("a lighthouse in fog", aspect_ratio="16:9", seed=1)   # uint8[1, 768, 1344, 3]

    `from_checkpoint` opens one, or `from_pretrained` by its id on the hub; a call draws. What can be asked for is a
    `Request`; the same can be drawn with `draw`, or with `draw_each`, which hands each picture over as soon as it is
    done.

    Args:
      parts: what `from_checkpoint` finds.

    Raises:
      InputError: `parts` is something else.
    """

    def __init__(self, parts: Parts):
        if not isinstance(parts, Parts):
            raise InputError(f"TextToImage takes Parts; TextToImage.from_checkpoint({str(parts)!r:.80}) opens a model")
        self.parts = parts

    def __repr__(self) -> str:
        parts, model = self.parts, self.parts.model
        return (
            f"<TextToImage of {parts.name}: {parts.resolution} px, {model.depth} blocks of {model.hidden_size}, "
            f"{parts.sampler}, {parts.num_steps} steps, guidance {parts.guidance_scale:g}>"
        )

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
        adapters: Sequence[Adaptation | AdapterFile | str | pathlib.Path] = (),
        wrap: Callable[[Apply], Apply] = as_it_is,
        text_once: bool = True,
        int8: str | None = None,
        int8_text_encoder: bool = False,
        mesh: MeshSpec | None = None,
    ) -> TextToImage:
        """Opens what `tools.convert` wrote, or a training run.

        Args:
          directory: a converted model, or the workdir of a run, whose newest checkpoint is taken.
          ema: of a run: the averaged weights (the default), or the raw ones.
          text_encoder, vae: directories that `tools.convert` wrote, where the model's own has none; None takes its own.
          dtype: of matrix products; None is bfloat16 on accelerators and float32 on a CPU.
          keep_loaded: leave all three models on the devices between calls. Otherwise each is loaded when it is its turn
            and gone after, so that the largest alone decides how much memory is needed.
          tile_size: latent cells along a side of the square up to which pictures are decoded at once; at least 4.
          adapters: laid over the model, one after the other. A path, or FILE:SCALE, is a LoRA of any format
            (`generation.lora.LoraFile`), and one that was distilled to few steps says sampler, steps and guidance; a
            ControlNet (`generation.control.ControlNetFile`) comes before the others.
          wrap: takes the adapted model, and gives what is called in its place: to quantise, to watch.
          text_once: compute keys and values of the text once per picture and hold them, not at every step. The picture
            is the same, up to rounding. Under a ControlNet, whose copies need the text itself, it is not done.
          int8: one of `shortcuts.eight_bits.MODES`, or "auto", the fastest on this device; None computes as trained.
          int8_text_encoder: hold T5's kernels in int8.
          mesh: how this process's devices draw: over "data" lie pictures and the two branches of guidance, over
            "context" the tokens of each picture. None is all over "data".

        Raises:
          InputError: not a model with captions, no checkpoint yet, an encoder is missing, the parts do not belong
            together, or the devices cannot be laid out so.
        """
        if dtype is None:
            dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        parts = open_parts(
            local_path(directory, "the checkpoint"),
            ema=ema,
            text_encoder=text_encoder,
            vae=vae,
            dtype=dtype,
            keep_loaded=keep_loaded,
            tile_size=whole_number("tile_size", tile_size, 4),
            int8_text_encoder=int8_text_encoder,
            mesh=mesh,
        )
        parts = dataclasses.replace(parts, wrap=wrap, text_once=text_once)
        return cls(parts if int8 is None else eight_bit_parts(parts, int8)).adapted(adapters)

    @classmethod
    def from_pretrained(cls, name: str, **how: Any) -> TextToImage:
        """Opens a model by its id on the hub: downloaded and, where it is a pipeline of diffusers, converted once.

        Args:
          name: owner/name, also owner/name@revision; or a folder, as `from_checkpoint` takes it. See
            `from_hub.local_model`.
          how: as `from_checkpoint`. Adapters may be ids too.

        Raises:
          InputError: the hub has no such model, or as `from_checkpoint`.
        """
        return cls.from_checkpoint(local_model(str(name)), **how)

    def adapted(self, adapters: Sequence[Adaptation | AdapterFile | str | pathlib.Path]) -> TextToImage:
        """Another one with adapters laid over this one's model; they share all that is loaded.

        Args, raises: as `from_checkpoint`.
        """
        parts = self.parts
        laid = [adaptation_of(adapter, parts.model, parts.mesh) for adapter in adapters]
        whole = next((each.whole for each in laid if each.whole), parts.whole)
        if parts.in_int8 and whole:
            raise InputError(whole)
        over, weights = adapted(parts.over, parts.weights, laid)
        needs = {**parts.needs, **{name: cure for each in laid for name, cure in each.needs.items()}}
        manner = {name: value for each in laid for name, value in each.manner.items()}
        return TextToImage(dataclasses.replace(parts, over=over, weights=weights, needs=needs, whole=whole, **manner))

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        progress: Progress = _tell_nobody,
        watch: Watch | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws pictures of prompts: `draw` of a `Request`.

        Args:
          prompts: a caption or a list of them.
          progress: told what is being done and how far it is.
          watch: told of every step.
          settings: the other attributes of `Request`: negative_prompt, num_images, seed, sampler, num_steps,
            guidance_scale, guidance, guidance_interval, reuse, size, aspect_ratio, height, width, noise, start,
            batch_size, conditions.

        Returns, raises: as `draw`.
        """
        known = [field.name for field in dataclasses.fields(Request)][1:]
        for name in settings.keys() - set(known):
            # What diffusers calls it.
            meant = {"num_inference_steps": ["num_steps"], "num_images_per_prompt": ["num_images"]}.get(name)
            near = meant or difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
            raise InputError(f"unknown setting {name}; did you mean {near[0]}?")
        return self.draw(Request(prompts, **settings), progress, watch)

    def draw(self, request: Request, progress: Progress = _tell_nobody, watch: Watch | None = None) -> np.ndarray:
        """Draws what is asked for.

        Args:
          progress: told what is being done and how far it is.
          watch: told of every step of each batch, with what is half drawn; what it raises ends the drawing.

        Returns:
          uint8[n, height, width, 3], n = len(prompts)·num_images, the pictures of one prompt side by side.

        Raises:
          InputError: a setting that is out of range or unknown.
          NotFinite: there is NaN or infinity on the way; says where it was first.
        """
        return np.stack([*self.draw_each(request, progress, watch)])

    def draw_each(
        self, request: Request, progress: Progress = _tell_nobody, watch: Watch | None = None
    ) -> Iterator[np.ndarray]:
        """As `draw`, but yields uint8[height, width, 3], each picture as soon as it is decoded."""
        manner = self.manner(request)
        parts, canvas, count = self.parts, request.canvas(self.parts.resolution), request.count
        schedule = parts.target.schedule(manner.sampler)
        sampler = build_sampler(manner.sampler, schedule, manner.num_steps, start=request.start.start)
        programs = self._programs(schedule, sampler.take_step, manner.guidance, manner.reuse)
        sample_fn = StepwiseSampler(programs, sampler, watch)
        noise = None if request.noise is None else self._to_tokens("noise has", request.noise, request)
        layout = self._layout(canvas, count)
        token_dim = parts.model.patch_size**2 * parts.model.latent_channels
        self._check_given(request, (*layout["positions"].shape[:2], token_dim))
        text, null = self._encode(request, progress)
        conditions = layout | text | dict(request.conditions)
        tokens = sample_in_batches(
            sample_fn,
            parts.weights(),
            conditions,
            null_branch(conditions) | null,
            token_dim=token_dim,
            seed=request.seeds,
            indices=request.noise_indices,
            guidance_scale=manner.guidance_scale,
            guidance_interval=manner.guidance_interval,
            batch_size=self.at_once(request),
            noise=noise,
            start_tokens=request.start.tokens,
            correct=request.start.correct,
            place=functools.partial(place, parts.mesh),
            progress=lambda done: progress("drawing", done, count),
        )
        latents = self.latents_of(tokens, request)
        target = Bucket(canvas.bucket.label, canvas.height, canvas.width)
        for number, picture in enumerate(parts.pictures_of(latents), 1):
            as_wanted = picture.shape[:2] == (canvas.height, canvas.width)
            yield picture if as_wanted else fit(Image.fromarray(picture), target)
            progress("decoding", number, count)

    def at_once(self, request: Request) -> int:
        """How many pictures of a request are drawn at a time: its `batch_size`, or what its devices share evenly."""
        branches = 2 if self.manner(request).guidance == "cfg" else 1
        return pictures_at_once(request.batch_size, request.count, self.parts.mesh, branches)

    def manner(self, request: Request) -> Manner:
        """How a request is drawn: as it says, and where it does not, as the model usually is.

        A sampler for few steps on a model of another one, which an adapter may have distilled, has its own number of
        steps and no guidance, unless a scale is named.
        """
        parts = self.parts
        sampler = request.sampler or parts.sampler
        parts.target.schedule(sampler)  # Or says why it has none.
        few = FEW_STEPS.get(sampler) if sampler != parts.sampler else None
        usual = guidance_of(sampler) if few else parts.guidance
        if parts.guidance == EMBEDDED:
            if request.guidance:
                raise InputError(
                    f"guidance = {request.guidance!r}: {parts.name} takes the guidance scale as an input, in one call; "
                    "leave it out, and set guidance_scale"
                )
            guidance = EMBEDDED
        else:
            guidance = request.guidance or ("cfg" if usual == "none" and request.guidance_scale is not None else usual)
        if request.guidance == "none" and request.guidance_scale is not None:
            raise InputError('guidance_scale: guidance = "none" draws without; leave one of the two out')
        check_path_drop(parts, guidance, request.reuse)
        num_steps = request.num_steps or few or parts.num_steps
        if request.reuse is not None:
            check_reuse(parts, request.reuse, sampler, num_steps, request.guidance_interval is not None)
        size = request.canvas(parts.resolution).size
        check_tokens(parts.mesh.shape.get("context", 1), parts.model, size, self._num_tokens(size))
        scale = parts.guidance_scale if request.guidance_scale is None else request.guidance_scale
        manner = Manner(sampler, num_steps, guidance, scale, request.guidance_interval, request.reuse)
        for name in ("guidance_interval", "negative_prompt"):
            if getattr(request, name) is not None and not manner.has_null_branch:
                cure = ", or name a guidance_scale" if guidance == "none" and not request.guidance else ""
                raise InputError(f"{name}: nothing heeds it without classifier-free guidance; leave it out{cure}")
        return manner

    @property
    def resolution(self) -> int:
        """Pixels along one side of the square that the model was trained at."""
        return self.parts.resolution

    def tokens_of(self, latents: np.ndarray, request: Request) -> np.ndarray:
        """Unscaled latents f32[n, h, w, C] as the tokens f32[n, N, p·p·C] that a request's `Start` takes.

        Raises:
          InputError: they are not of the request's number and size.
        """
        return self._to_tokens("latents have", finite_array("latents", latents) * self.parts.latent_scale, request)

    def latents_of(self, tokens: np.ndarray, request: Request) -> np.ndarray:
        """Unscaled latents f32[n, h, w, C] of tokens f32[n, N, p·p·C] of the request's size."""
        rows, columns, _ = self._latent_shape(request.canvas(self.parts.resolution))
        patch_size = self.parts.model.patch_size
        grid = (rows // patch_size, columns // patch_size)
        return tokens_to_latents(tokens, grid, patch_size, self.parts.latent_scale, self._block_ratio)

    def noise_of(self, request: Request) -> np.ndarray:
        """What a request's pictures start from, as tokens f32[n, N, p·p·C]."""
        if request.noise is not None:
            return self._to_tokens("noise has", request.noise, request)
        canvas, model = request.canvas(self.parts.resolution), self.parts.model
        shape = (self._num_tokens(canvas.size), model.patch_size**2 * model.latent_channels)
        return jax.device_get(draw_noise(words_of(request.seeds), request.noise_indices, shape)[0])

    def _check_given(self, request: Request, shape: tuple[int, ...]) -> None:
        tokens = request.start.tokens
        if tokens is not None and tokens.shape != shape:
            raise InputError(f"start tokens have shape {tokens.shape}, these pictures' have {shape}; see tokens_of")
        needs, given = self.parts.needs, request.conditions
        if missing := [name for name in needs if name not in given]:
            raise InputError(f"the condition {missing[0]} is missing: {needs[missing[0]]}")
        if unknown := [name for name in given if name not in needs]:
            raise InputError(f"the condition {unknown[0]} is what no adapter of {self.parts.name} takes; leave it out")
        if wrong := [name for name, array in given.items() if len(array) != request.count]:
            raise InputError(f"the condition {wrong[0]} is of {len(given[wrong[0]])} pictures, not of {request.count}")

    def _to_tokens(self, what: str, latents: np.ndarray, request: Request) -> np.ndarray:
        canvas = request.canvas(self.parts.resolution)
        expected = (request.count, *self._latent_shape(canvas))
        if latents.shape != expected:
            raise InputError(f"{what} shape {latents.shape}, these pictures start from {expected}")
        num_tokens, patch_size = self._num_tokens(canvas.size), self.parts.model.patch_size
        return latents_to_tokens(np.asarray(latents, np.float32), patch_size, num_tokens, self._block_ratio)

    def _num_tokens(self, size: int) -> int:
        """N, of a square of so many pixels along a side."""
        return (size // (DOWNSAMPLE * self.parts.model.patch_size)) ** 2

    @property
    def _block_ratio(self) -> int:
        return max(self.parts.model.kv_compress, default=1)

    def _encode(self, request: Request, progress: Progress) -> tuple[dict, dict]:
        """The text conditions of both branches."""
        given, clean = request.negative_prompt, CLEANING[self.parts.caption_cleaning]
        prompts = [clean(prompt) for prompt in request.prompts]
        if given is None and not self.parts.has_null_text:
            given = ""
        negatives = None
        if given is not None:
            each = [given] * len(prompts) if isinstance(given, str) else given
            negatives = [clean(prompt) for prompt in each]
        distinct = [*dict.fromkeys([*prompts, *(negatives or ())])]
        text, length = self.parts.encode_text(distinct, lambda done: progress("reading", done, len(distinct)))

        def conditions(captions):
            rows = np.repeat([distinct.index(caption) for caption in captions], request.num_images)
            return {"text": text[rows], "text_length": length[rows], "text_drop": np.zeros(len(rows), bool)}

        positive = conditions(prompts)
        if negatives is None:
            # As large as a negative prompt's, so that one program serves both.
            return positive, {**positive, **null_branch(positive)}
        return positive, conditions(negatives)

    def _layout(self, canvas: Canvas, count: int) -> dict[str, np.ndarray]:
        """The conditions that say where the tokens of `count` pictures are, and α's micro-conditions."""
        bucket, unit = canvas.bucket, DOWNSAMPLE * self.parts.model.patch_size
        grid = (bucket.height // unit, bucket.width // unit)
        order = block_order(grid, self._block_ratio)
        positions = grid_positions(grid, self.parts.position_base, self.parts.position_scale)[order]
        padded = np.zeros((self._num_tokens(canvas.size), 2), np.float32)
        padded[: len(positions)] = positions
        return {
            "positions": np.tile(padded, (count, 1, 1)),
            "num_tokens": np.full(count, len(positions), np.int32),
            "image_size": np.tile(np.array([bucket.height, bucket.width], np.float32), (count, 1)),
            # The label, which the reference trains on and samples with; diffusers takes the quotient of the sides.
            "aspect_ratio": np.full((count, 1), bucket.label, np.float32),
        }

    def _latent_shape(self, canvas: Canvas) -> tuple[int, int, int]:
        return canvas.bucket.height // DOWNSAMPLE, canvas.bucket.width // DOWNSAMPLE, self.parts.model.latent_channels

    @functools.lru_cache(maxsize=8)  # noqa: B019 - keeps compiled programs for as long as the object that owns them
    def _programs(
        self, schedule: DiffusionSchedule | FlowSchedule, take_step: TakeStep, guidance: str, reuse: str | None
    ) -> Programs:
        apply, prepare = denoiser_of(self.parts, reuse)
        apply = self.parts.target.fit(apply, schedule)
        return compile_programs(
            apply, schedule, take_step, guidance=guidance, prepare=prepare, kept=kept(self.parts.mesh)
        )
