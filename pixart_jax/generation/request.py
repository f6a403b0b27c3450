"""What is asked of a pipeline, and what a picture is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import Canvas, choose_canvas
from pixart_jax.samplers.steps import Correct

# (what is being done, how many are done, of how many)
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What pictures are drawn from. By default noise; tokens are `TextToImage.tokens_of` latents.

    Attributes:
      tokens: f32[n, N, p·p·C], of clean pictures to begin near; None begins with pure noise.
      start: which share of the way from noise is gone, in (0, 1]; below 1 it begins late in the sampler's table.
      correct: has the last word on every step: a `jax.tree_util.Partial` over arrays of leading axis n.
    """

    tokens: np.ndarray | None = None
    start: float = 1.0
    correct: Correct | None = None


NOISE = Start()


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Pictures to draw; None is the pipeline's own.

    The same prompt, seed and settings give the same pictures, whatever else is drawn in the same request, the batch
    size and the number of devices: the k-th picture of every prompt starts from the seed's k-th noise.

    Attributes:
      prompts: captions as a person writes them; they are cleaned as in training.
      negative_prompt: what guidance moves away from, instead of the null caption.
      num_images: of each prompt; n = len(prompts)·num_images in all, those of one prompt side by side.
      guidance: one of `samplers.program.GUIDANCES`.
      size, aspect_ratio, height, width: see `choose_canvas`.
      noise: f32[n, h, w, C] instead of the seed's.
      start: see `Start`.
      batch_size: pictures drawn at a time; one program is compiled for each batch size.

    Raises:
      InputError: no prompts, or a number below 1.
    """

    prompts: Sequence[str]
    _: dataclasses.KW_ONLY
    negative_prompt: str | None = None
    num_images: int = 1
    seed: int = 0
    sampler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance: str | None = None
    size: int | None = None
    aspect_ratio: str | None = None
    height: int | None = None
    width: int | None = None
    noise: np.ndarray | None = None
    start: Start = NOISE
    batch_size: int = 4

    def __post_init__(self):
        if isinstance(self.prompts, str) or not self.prompts:
            raise InputError("prompts must be a list of at least one caption")
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.start.start < 1 and self.start.tokens is None:
            raise InputError(
                f"start = {self.start.start}: there are no tokens to begin near; give them, or set it to 1"
            )

    @property
    def count(self) -> int:
        """n, the number of pictures."""
        return len(self.prompts) * self.num_images

    def canvas(self, resolution: int) -> Canvas:
        """What a model of that resolution draws it at."""
        return choose_canvas(
            resolution, size=self.size, aspect_ratio=self.aspect_ratio, height=self.height, width=self.width
        )
