"""What a studio draws with: one model, the LoRAs of a folder over it, and a ControlNet that shares its weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from pixart_jax.data.decoding import fit
from pixart_jax.encoding.edges import MakeControl
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from pixart_jax.files import open_regular
from pixart_jax.generation.control import ControlNetFile, control_condition, nearest
from pixart_jax.generation.lora import LoraFile
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request

# Of a folder; each is computed for every picture, also where its slider is at 0.
MAX_LORAS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """Drawing under control.

    Attributes:
      pipeline: with the ControlNet laid over it.
      make: what it follows, of a picture.
    """

    pipeline: TextToImage
    make: MakeControl

    def condition(self, request: Request, picture: np.ndarray, scale: float) -> Request:
        """The request, drawn after a picture uint8[H, W, 3]."""
        return dataclasses.replace(
            request, conditions=control_condition(self.pipeline, request, [picture], self.make, scale)
        )

    def shape(self, request: Request, picture: np.ndarray) -> Request:
        """The request in the picture's shape."""
        return dataclasses.replace(request, aspect_ratio=nearest([picture], request.size or self.pipeline.resolution))

    def edges(self, request: Request, picture: np.ndarray) -> np.ndarray:
        """What is followed, uint8[height, width, 3], to be looked at."""
        bucket = request.canvas(self.pipeline.resolution).bucket
        made = self.make(fit(Image.fromarray(picture), bucket)[None])[0]
        return to_uint8(np.asarray(made) / 127.5 - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """All of it.

    Attributes:
      pipeline: of the model with its LoRAs.
      loras: by name; their scales are set for each job.
      control: None where there is no ControlNet.
    """

    pipeline: TextToImage
    loras: Mapping[str, LoraFile] = dataclasses.field(default_factory=dict)
    control: Control | None = None

    @classmethod
    def of(
        cls,
        base: TextToImage,
        loras: Mapping[str, LoraFile] | None = None,
        controlnet: pathlib.Path | None = None,
        make: MakeControl | None = None,
    ) -> Models:
        """Lays them over a model.

        Raises:
          InputError: one of them is another model's.
        """
        found = dict(loras or {})
        pipeline = base.adapted([*found.values()]) if found else base
        if controlnet is None or make is None:
            return cls(pipeline, found)
        controlled = base.adapted([ControlNetFile(controlnet), *found.values()])
        return cls(pipeline, found, Control(controlled, make))


def loras_of(folder: pathlib.Path, base: TextToImage, tell: Callable[[str], None]) -> dict[str, LoraFile]:
    """The LoRAs of a folder by name: safetensors files and PEFT's folders; nothing else is opened.

    Args:
      tell: told of each that cannot be drawn with, and why.

    Raises:
      InputError: there is no such folder.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"--loras {folder}: {error.strerror}; name a folder of .safetensors files") from error
    found: dict[str, LoraFile] = {}
    for entry in entries:
        is_folder = (entry / "adapter_config.json").is_file()
        if not (is_folder or entry.suffix == ".safetensors"):
            continue
        if len(found) == MAX_LORAS:
            tell(f"{folder} has more than {MAX_LORAS} LoRAs; the first {MAX_LORAS} are taken")
            break
        try:
            if not is_folder:
                _check_safetensors(entry)
            lora = LoraFile.read(entry, scale=0.0)
            if any(layer.magnitude is not None for layer in lora.weights.layers.values()):
                raise InputError("it is DoRA, which a slider at 0 would not take away; name it to tools.sample")
            lora.over(base.parts.model, base.parts.mesh)
        except InputError as error:
            tell(f"{entry.name} is left out: {error}")
            continue
        found[entry.stem if not is_folder else entry.name] = lora
    return found


def _check_safetensors(path: pathlib.Path) -> None:
    """Raises InputError for a file that only has the name, such as a pickle, which would be code."""
    try:
        with open_regular(path) as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"it cannot be read: {error}") from error
    if len(head) < 9 or head[8:] != b"{" or int.from_bytes(head[:8], "little") > path.stat().st_size:
        raise InputError("it is no safetensors file, whatever its name says")
