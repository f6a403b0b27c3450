"""What a command gives to draw under control: a ControlNet, and the picture files that it follows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixart_jax.data.shards.ends import ends_crc32
from pixart_jax.encoding.edges import MakeControl, open_edges
from pixart_jax.encoding.told import fingerprint
from pixart_jax.errors import InputError
from pixart_jax.generation.control import ControlNetFile, control_condition, nearest
from pixart_jax.generation.given import read_picture
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.values import real_number

_SHAPE = ("aspect_ratio", "height", "width")


@dataclasses.dataclass(frozen=True, eq=False)
class ControlGiven:
    """A ControlNet and what it follows.

    Attributes:
      path: of the ControlNet; None where the checkpoint is a run that trains one.
      pictures: uint8[H, W, 3] each, one for all prompts or one for each.
      kind: one of `encoding.edges.KINDS`.
      make: of that kind.
      scale: see `control_condition`.
    """

    path: pathlib.Path | None
    pictures: Sequence[np.ndarray]
    kind: str
    make: MakeControl
    scale: float

    @property
    def adapters(self) -> list[ControlNetFile]:
        """For `TextToImage.from_checkpoint`, before all others."""
        return [] if self.path is None else [ControlNetFile(self.path)]

    def shape(self, asked: dict[str, Any], pipeline: TextToImage) -> dict[str, Any]:
        """Settings of a `Request`: where none of them says how large pictures are drawn, the control pictures do.

        Raises:
          InputError: their nearest buckets are different ones; or the pipeline has no ControlNet.
        """
        if "control" not in pipeline.parts.needs:
            raise InputError(
                f"--control needs a ControlNet, and {pipeline.parts.name} trains none; name one (--controlnet)"
            )
        if any(asked.get(name) is not None for name in _SHAPE):
            return asked
        return asked | {"aspect_ratio": nearest(self.pictures, asked.get("size") or pipeline.resolution)}

    def about(self, prompt: int) -> dict[str, Any]:
        """What is to be told of it beside a picture of the prompt of that number."""
        return self._about(self._of([prompt]))

    def about_all(self) -> dict[str, Any]:
        """The same of all of them together."""
        return self._about(self.pictures)

    def _about(self, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
        told: dict[str, Any] = {"control_kind": self.kind, "control_scale": self.scale}
        told |= {} if self.path is None else {"controlnet": f"{self.path.absolute().name} ({self._mark})"}
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(str(picture.shape).encode() + picture.tobytes())
        return told | {"control": digest.hexdigest()[:16]}

    @functools.cached_property
    def _mark(self) -> str:
        """Tells the ControlNet's file or folder from another of its name."""
        if self.path is None:
            return ""
        return fingerprint(self.path)[:8] if self.path.is_dir() else f"{ends_crc32(self.path):08x}"

    def under(self, pipeline: TextToImage, request: Request, prompts: Sequence[int]) -> Request:
        """The request, which is for the prompts of these numbers, with its control."""
        condition = control_condition(pipeline, request, self._of(prompts), self.make, self.scale)
        return dataclasses.replace(request, conditions={**request.conditions, **condition})

    def _of(self, prompts: Sequence[int]) -> list[np.ndarray]:
        return [self.pictures[0]] if len(self.pictures) == 1 else [self.pictures[number] for number in prompts]


def read_control(
    path: pathlib.Path | None,
    pictures: Sequence[pathlib.Path],
    num_prompts: int,
    *,
    kind: str | None,
    scale: float | None,
    hed: pathlib.Path | None,
) -> ControlGiven | None:
    """What a command gives by --controlnet, --control, --control-kind, --control-scale and --hed; None if nothing.

    Raises:
      InputError: options that do not go together, or a file that cannot be read.
    """
    if not pictures:
        given = {"--controlnet": path, "--control-kind": kind, "--control-scale": scale, "--hed": hed}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise InputError(f"{wrong[0]} needs a control picture; name one, or one for each prompt (--control)")
        return None
    if kind is None:
        raise InputError(
            "--control-kind says what is made of the control picture: hed or canny, its edges, or none, where it shows "
            "already what the ControlNet was trained on"
        )
    if len(pictures) not in (1, num_prompts):
        raise InputError(
            f"--control names {len(pictures)} pictures for {num_prompts} prompts; give one for all, or one for each"
        )
    scale = real_number("--control-scale", 1.0 if scale is None else scale)
    if not 0 <= scale <= 1:
        raise InputError(f"--control-scale {scale:g}: must lie in [0, 1]; it is the brightness of the control picture")
    read = [read_picture(picture, "--control") for picture in pictures]
    return ControlGiven(path, read, kind, open_edges(kind, hed, option="--hed"), scale)
