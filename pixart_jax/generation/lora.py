"""LoRA from files, to draw with."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zlib

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Params
from pixart_jax.adapters.lora import SCALE, Lora
from pixart_jax.conversion.formats.lora import LoraWeights
from pixart_jax.conversion.formats.lora_reading import read_lora, split_scale
from pixart_jax.conversion.lora import adapter_arrays
from pixart_jax.devices.sharding import replicated
from pixart_jax.generation.adaptation import DORA_IS_WHOLE, Adaptation, AdapterFile
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers import guidance_of


@dataclasses.dataclass(eq=False)
class LoraFile:
    """An adapter and how strongly it is drawn with.

    style = LoraFile.read("style.safetensors", scale=0.8)
    pipeline = TextToImage.from_checkpoint("weights/sigma-512", adapters=[style])
    style.scale = 0.4  # heeded by the next picture; nothing is compiled anew

    Attributes:
      weights: of the adapter.
      scale: what its own scale is multiplied by. Of DoRA that is no blend with the base's weights, and 0 need not give
        them back: the lengths of their rows stay the adapter's.
    """

    weights: LoraWeights
    scale: float = 1.0

    @classmethod
    def read(cls, path: str | pathlib.Path, *, scale: float = 1.0, alpha: float | None = None) -> LoraFile:
        """Opens a file or a folder; args and errors as `lora_reading.read_lora`."""
        return cls(read_lora(path, alpha=alpha), scale)

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """Opens FILE or FILE:SCALE; errors as `lora_reading.split_scale` and `read_lora`."""
        path, scale = split_scale(text)
        return cls.read(path, scale=scale)

    @functools.cached_property
    def checksum(self) -> str:
        """Of its arrays and their scales."""
        found = 0
        for name in sorted(self.weights.layers):
            layer = self.weights.layers[name]
            magnitude = b"" if layer.magnitude is None else layer.magnitude.tobytes()
            head = f"{name} {self.weights.scale(name)}".encode()
            for part in (head, layer.a.tobytes(), layer.b.tobytes(), magnitude):
                found = zlib.crc32(part, found)
        return f"{found:08x}"

    def over(self, model: PixArt, mesh: Mesh) -> Adaptation:
        """It, laid over a model; raises InputError where it is another model's."""
        arrays = adapter_arrays(self.weights, parameter_shapes(model))
        sharding = replicated(mesh)

        def load() -> Params:
            scaled = {
                path: array * np.float32(self.scale) if path.endswith(SCALE) else array
                for path, array in arrays.items()
            }
            return jax.device_put(flax.traverse_util.unflatten_dict(scaled, sep="/"), sharding)

        few = self.weights.few_steps
        whole = any(layer.magnitude is not None for layer in self.weights.layers.values())
        return Adaptation(
            Lora,
            load,
            whole=DORA_IS_WHOLE if whole else "",
            manner=few._asdict() | {"guidance": guidance_of(few.sampler)} if few else {},
        )


def adaptation_of(adapter: Adaptation | AdapterFile | str | pathlib.Path, model: PixArt, mesh: Mesh) -> Adaptation:
    """An adapter laid over a model; a path, or FILE:SCALE, is a LoRA. Raises InputError where it is another model's."""
    if isinstance(adapter, Adaptation):
        return adapter
    file = LoraFile.parse(str(adapter)) if isinstance(adapter, str | pathlib.Path) else adapter
    return file.over(model, mesh)
