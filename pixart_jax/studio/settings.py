"""What a visitor of the studio asks for: checked, and as the text chunks of the PNG that came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_jax.data.buckets import RESOLUTIONS
from pixart_jax.data.styles import Style
from pixart_jax.errors import InputError
from pixart_jax.generation.parts import Parts
from pixart_jax.generation.request import Request
from pixart_jax.generation.values import real_number, whole_number
from pixart_jax.rng import check_seed
from pixart_jax.samplers import FEW_STEPS, SAMPLERS, guidance_of
from pixart_jax.samplers.program import DROPPED_PATH, EMBEDDED

# Chosen where no style is wanted.
NO_STYLE = "none"
RATIOS = ("1:1", "4:3", "3:2", "16:9", "2:1", "3:4", "2:3", "9:16", "1:2")
# A text chunk of our PNGs: all settings as JSON. The other chunks are those of tools.sample.
CHUNK = "pixart_settings"
# Of samplers for many steps, where the model's own is one for few, or another kind.
_MANY_STEPS, _MANY_GUIDANCE = 20, 4.5
_STEPS_OF = {"iddpm": 100}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one visitor may ask for at once.

    Attributes:
      num_images: pictures of a prompt.
      num_steps: of a sampler.
      characters: of a prompt.
      samplers: those that can draw from the model.
      guidances: those that can guide it, see `guidances_of`.
    """

    num_images: int = 4
    num_steps: int = 250
    characters: int = 2000
    samplers: tuple[str, ...] = SAMPLERS
    guidances: tuple[str, ...] = ("cfg",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chooses, with nothing left open.

    Attributes:
      negative_prompt: "" is the model's null caption.
      style: a name of `data.styles`, or NO_STYLE.
      aspect_ratio: "WIDTH:HEIGHT".
      size: pixels along a side of the square.
      guidance: one of `Limits.guidances`; of samplers for few steps, which draw without, nothing heeds it.
      loras: (name, scale) of each that is laid over the model.
    """

    prompt: str
    negative_prompt: str = ""
    style: str = NO_STYLE
    aspect_ratio: str = "1:1"
    size: int
    sampler: str
    num_steps: int
    guidance_scale: float
    seed: int = 0
    num_images: int = 1
    guidance: str = "cfg"
    loras: tuple[tuple[str, float], ...] = ()

    def request(self, styles: Mapping[str, Style], *, takes_scale: bool = False) -> Request:
        """What is asked of a pipeline.

        Args:
          takes_scale: the model takes the guidance scale as an input, see `program.EMBEDDED`.
        """
        prompt, negative = self.worded(styles, takes_scale=takes_scale)
        guidance = self._guidance
        return Request(
            [prompt],
            negative_prompt=negative,
            num_images=self.num_images,
            seed=self.seed,
            sampler=self.sampler,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale if takes_scale or guidance != "none" else None,
            guidance=None if takes_scale else guidance,
            size=self.size,
            aspect_ratio=self.aspect_ratio,
        )

    @property
    def _guidance(self) -> str:
        """Of a model that does not take the scale as an input."""
        return self.guidance if guidance_of(self.sampler) == "cfg" else "none"

    def worded(self, styles: Mapping[str, Style], *, takes_scale: bool = False) -> tuple[str, str | None]:
        """Prompt and negative prompt in the style; None is the null caption, or that nothing heeds one."""
        prompt, negative = self.prompt, self.negative_prompt or None
        if self.style != NO_STYLE:
            prompt, negative = styles[self.style].of(prompt, negative)
        return prompt, None if takes_scale or self._guidance == "none" else negative

    def chunks(self, styles: Mapping[str, Style], number: int, *, takes_scale: bool = False) -> dict[str, str]:
        """The text chunks of the PNG of a picture, the number-th of these settings."""
        prompt, negative = self.worded(styles, takes_scale=takes_scale)
        guidance = "cfg" if takes_scale else self._guidance
        told: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative,
            "image": number,
            "seed": self.seed,
            "size": self.size,
        }
        told |= {"sampler": self.sampler, "num_steps": self.num_steps}
        told |= {"guidance": guidance} if guidance != "cfg" else {}
        told |= {"guidance_scale": self.guidance_scale} if guidance != "none" else {}
        found = {name: str(value) for name, value in told.items() if value is not None}
        return found | {CHUNK: json.dumps(dataclasses.asdict(self), ensure_ascii=True)}


def manner_of(parts: Parts, sampler: str) -> tuple[int, float]:
    """Number of steps and guidance scale that suit a sampler on a model."""
    if sampler == parts.sampler:
        return parts.num_steps, parts.guidance_scale if parts.guidance != "none" else 1.0
    if sampler in FEW_STEPS:
        return FEW_STEPS[sampler], 1.0
    if sampler in _STEPS_OF:
        return _STEPS_OF[sampler], parts.guidance_scale if parts.guidance != "none" else _MANY_GUIDANCE
    if parts.sampler in FEW_STEPS:
        return _MANY_STEPS, _MANY_GUIDANCE
    return parts.num_steps, parts.guidance_scale


def guidances_of(parts: Parts) -> tuple[str, ...]:
    """What a model can be guided by."""
    return ("cfg",) if parts.path_drop is None or parts.guidance == EMBEDDED else ("cfg", DROPPED_PATH)


def first_settings(parts: Parts) -> Settings:
    """What the page shows at first."""
    steps, scale = manner_of(parts, parts.sampler)
    return Settings(
        prompt="",
        size=parts.resolution,
        sampler=parts.sampler,
        num_steps=steps,
        guidance_scale=scale,
        guidance=parts.guidance if parts.guidance in guidances_of(parts) else "cfg",
    )


def sizes_of(resolution: int) -> list[int]:
    """Pixels along a side of the square that a model is offered to draw at."""
    return [size for size in RESOLUTIONS if size <= resolution] if resolution in RESOLUTIONS else [resolution]


def ratios_of(resolution: int) -> tuple[str, ...]:
    """Aspect ratios that a model is offered to draw in."""
    return RATIOS if resolution in RESOLUTIONS else RATIOS[:1]


def checked(
    given: Mapping[str, Any],
    first: Settings,
    styles: Mapping[str, Style],
    loras: Sequence[str] = (),
    limits: Limits = Limits(),
) -> Settings:
    """Settings of what a page, a caller or a PNG says; what is missing is as in `first`.

    Raises:
      InputError: unknown names, a value of another kind, or beyond the limits; names it.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(given) - known):
        raise InputError(f"there is no setting {unknown[0]!r:.80}")
    values = dataclasses.asdict(first) | dict(given)
    for name in ("prompt", "negative_prompt", "style", "aspect_ratio", "sampler", "guidance"):
        if not isinstance(values[name], str):
            raise InputError(f"{name} must be a text, not {values[name]!r:.80}")
        if len(values[name]) > limits.characters:
            raise InputError(f"{name} has {len(values[name]):,} characters; at most {limits.characters:,} are read")
    for name, most in (("num_images", limits.num_images), ("num_steps", limits.num_steps)):
        values[name] = whole_number(name, values[name], 1)
        if values[name] > most:
            raise InputError(f"{name} = {values[name]}: at most {most} here")
    values["seed"] = check_seed(_seed(values["seed"]), "seed")
    values["size"] = whole_number("size", values["size"], 1)
    values["guidance_scale"] = real_number("guidance_scale", values["guidance_scale"])
    for name, choices in (
        ("sampler", limits.samplers),
        ("guidance", limits.guidances),
        ("style", (NO_STYLE, *styles)),
        ("size", sizes_of(first.size)),
        ("aspect_ratio", ratios_of(first.size)),
    ):
        if values[name] not in choices:
            raise InputError(f"{name} = {values[name]!r:.80}: must be one of {', '.join(map(str, choices))}")
    values["loras"] = _loras(values["loras"], loras)
    return Settings(**values)


def _seed(value: Any) -> int:
    """A page has it as text: numbers of JavaScript are exact up to 2⁵³ only."""
    if isinstance(value, str):
        text = value.strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise InputError(f"seed = {value!r:.40}: must be a whole number from 0 to 2⁶⁴ - 1")
        value = int(text)
    return whole_number("seed", value, 0)


def _loras(value: Any, known: Sequence[str]) -> tuple[tuple[str, float], ...]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
        raise InputError(f"loras must be pairs of a name and a scale, not {value!r:.80}")
    for name, _ in pairs:
        if name not in known:
            raise InputError(f"there is no LoRA {name!r:.80} here; there are {', '.join(known) or 'none'}")
    return tuple((name, real_number(f"the scale of {name}", scale)) for name, scale in pairs if scale)
