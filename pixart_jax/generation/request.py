"""What is asked of a pipeline, and what a picture is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.generation.canvas import Canvas, choose_canvas
from pixart_jax.generation.values import captions, finite_array, interval, real_number, whole_number
from pixart_jax.rng import check_seed
from pixart_jax.samplers.program import DROPPED_PATH
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

    def __post_init__(self):
        object.__setattr__(self, "start", real_number("start", self.start))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", finite_array("start tokens", self.tokens))


NOISE = Start()


@dataclasses.dataclass(frozen=True)
class Manner:
    """How pictures are drawn, by the attributes of `Request` of these names."""

    sampler: str
    num_steps: int
    guidance: str
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None
    reuse: str | None = None

    @property
    def has_null_branch(self) -> bool:
        """Whether the model is also asked without the caption, or with the negative prompt in its place."""
        return self.guidance in ("cfg", DROPPED_PATH)


# The least of each attribute of a `Request` that is a whole number.
_WHOLE = {"num_images": 1, "num_steps": 1, "size": 1, "height": 1, "width": 1, "batch_size": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Pictures to draw; None is the pipeline's own.

    The same prompt, seed and settings give the same pictures, whatever else is drawn in the same request, the batch
    size and the number of devices: the k-th picture of a prompt starts from the k-th noise of its seed.

    Attributes:
      prompts: captions as a person writes them; they are cleaned as in training. A string is one.
      negative_prompt: what guidance moves away from, instead of the null caption: one for all prompts, or one of each.
      num_images: of each prompt; n = len(prompts)·num_images in all, those of one prompt side by side.
      seed: up to 2⁶⁴ - 1: one for all prompts, or one of each.
      guidance: one of `samplers.program.GUIDANCES`.
      guidance_interval: (low, high), timesteps of the model in [0, 1000]: only steps that begin from low to high are
        guided, the others take half the work (Kynkäänniemi et al. 2024); None guides all.
      reuse: key of `shortcuts.reuse.PRESETS`: how many times less work a picture takes, as what blocks changed at
        earlier steps is used again; None computes every step.
      size, aspect_ratio, height, width: see `choose_canvas`.
      noise: f32[n, h, w, C] instead of the seed's.
      start: see `Start`.
      batch_size: pictures drawn at a time; one program is compiled for each batch size.
      conditions: what adapters need beside the model's own, by name, arrays of leading axis n; the same in both
        branches of guidance.

    Raises:
      InputError: no prompts, a number that is none or out of range, or NaN or infinity.
    """

    prompts: str | Sequence[str]
    _: dataclasses.KW_ONLY
    negative_prompt: str | Sequence[str] | None = None
    num_images: int = 1
    seed: int | Sequence[int] = 0
    sampler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance: str | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: str | None = None
    size: int | None = None
    aspect_ratio: str | float | Sequence[float] | None = None
    height: int | None = None
    width: int | None = None
    noise: np.ndarray | None = None
    start: Start = NOISE
    batch_size: int = 4
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        # What was given in another form than it is used in: the one that it is used in.
        given: dict[str, Any] = {"prompts": captions("prompts", self.prompts)}
        if self.negative_prompt is not None:
            given["negative_prompt"] = self._negative_prompts(len(given["prompts"]))
        given["seed"] = self._seed(len(given["prompts"]))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _WHOLE:
                low = _WHOLE[field.name]
                value = field.default if value is None else value
                given[field.name] = None if value is None else whole_number(field.name, value, low)
        if self.guidance_scale is not None:
            given["guidance_scale"] = real_number("guidance_scale", self.guidance_scale)
        if self.guidance_interval is not None:
            given["guidance_interval"] = interval("guidance_interval", self.guidance_interval)
        if self.noise is not None:
            given["noise"] = finite_array("noise", self.noise)
        for name in ("sampler", "guidance", "reuse"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"{name} = {getattr(self, name)!r}: must be a name")
        given["start"] = NOISE if self.start is None else self.start
        given["conditions"] = {name: finite_array(name, array) for name, array in (self.conditions or {}).items()}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.start, Start):
            raise InputError(f"start must be a Start, not {self.start!r}: Start(tokens=..., start=0.6)")
        if self.start.start < 1 and self.start.tokens is None:
            raise InputError(
                f"start = {self.start.start:g}: there are no tokens to begin near; give them, or set it to 1"
            )

    def _negative_prompts(self, count: int) -> str | list[str]:
        """One for all, or a list of one for each of `count` prompts."""
        found = captions("negative_prompt", self.negative_prompt)
        if len(found) not in (1, count):
            raise InputError(
                f"negative_prompt has {len(found)} captions for {count} prompts; give one for all, or one for each"
            )
        return found[0] if len(found) == 1 else found

    def _seed(self, count: int) -> int | list[int]:
        """One for all, or a list of one for each of `count` prompts."""
        given: Any = self.seed
        if isinstance(given, str | bytes) or not (isinstance(given, Sequence) or np.ndim(given) == 1):
            return check_seed(whole_number("seed", 0 if given is None else given, 0), "seed")
        found = [check_seed(whole_number(f"seed[{i}]", seed, 0), f"seed[{i}]") for i, seed in enumerate(given)]
        if len(found) != count:
            raise InputError(f"seed has {len(found)} numbers for {count} prompts; give one for all, or one for each")
        return found

    @property
    def count(self) -> int:
        """n, the number of pictures."""
        return len(self.prompts) * self.num_images

    @property
    def seeds(self) -> int | list[int]:
        """One for all pictures, or one of each of the n."""
        return self.seed if isinstance(self.seed, int) else [one for one in self.seed for _ in range(self.num_images)]

    def alone(self) -> Request:
        """The request of its first picture."""
        return dataclasses.replace(
            self, prompts=self.prompts[:1], negative_prompt=None, num_images=1, seed=self.first_seed, noise=None
        )

    @property
    def first_seed(self) -> int:
        """That of the first prompt."""
        return self.seed if isinstance(self.seed, int) else self.seed[0]

    @property
    def noise_indices(self) -> np.ndarray:
        """Which noise of the seed each picture starts from, i32[n]."""
        return np.tile(np.arange(self.num_images, dtype=np.int32), len(self.prompts))

    def canvas(self, resolution: int) -> Canvas:
        """What a model of that resolution draws it at."""
        return choose_canvas(
            resolution, size=self.size, aspect_ratio=self.aspect_ratio, height=self.height, width=self.width
        )
