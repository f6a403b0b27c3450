"""What test_placing.py runs in a process of its own, because the number of simulated devices is fixed at the start.

Prints a line for each way of drawing whose latents were those of one device, unless one's are not.
"""

import dataclasses
import functools
import logging
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np

from pixart_jax.adapters.layers import layers_of
from pixart_jax.conversion.control import Control
from pixart_jax.conversion.controlnet_files import write_controlnet
from pixart_jax.conversion.formats.lora import LoraLayer, LoraWeights
from pixart_jax.devices.sharding import MeshSpec, make_mesh
from pixart_jax.encoding.pretrained import LazyParams
from pixart_jax.generation.control import ControlNetFile
from pixart_jax.generation.denoiser import eight_bit_parts
from pixart_jax.generation.lora import LoraFile
from pixart_jax.generation.parts import Parts
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.placing import drawing_mesh, parse_mesh
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import image_to_image, inpainting
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.controlnet import copy_blocks
from pixart_jax.models.params import abstract_params, parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.program import DROPPED_PATH

TEXT_TOKENS = 12
# Padding: 240 of 256 tokens, and captions of other lengths.
ONE = {"prompts": ["red"], "negative_prompt": "a blue dog", "aspect_ratio": "5:3", "num_steps": 4}
TWO = {"prompts": ["red", "a blue dog in fog"], "num_steps": 4}


def noise_like(leaf):
    """Noise on all, because some weights start at zero and would hide what comes before them."""
    return 0.2 * np.random.default_rng(0).standard_normal(leaf.shape, np.float32)


def with_lora(pipeline):
    """Of all linear layers."""
    layers = {
        name: LoraLayer(*(noise_like(np.empty(shape)) for shape in ((layer.inputs, 2), (2, layer.outputs))), alpha=4.0)
        for layer in layers_of(parameter_shapes(pipeline.parts.model))
        for name in layer.names
    }
    return pipeline.adapted([LoraFile(LoraWeights(pathlib.Path("random"), layers), scale=0.5)])


def with_control(pipeline):
    """A ControlNet that copies the first block."""
    shapes = abstract_params(pipeline.parts.model, pipeline.parts.mesh)
    copies = jax.tree.map(noise_like, jax.eval_shape(functools.partial(copy_blocks, num_copies=1), shapes))
    flat = flax.traverse_util.flatten_dict(copies, sep="/")
    with tempfile.TemporaryDirectory() as folder:
        write_controlnet(pathlib.Path(folder) / "control", Control(1, list(flat), flat.get))
        return pipeline.adapted([ControlNetFile(pathlib.Path(folder) / "control")])


def in_int8(pipeline):
    """Its weights alone: products of int8 are rounded otherwise by what differs in the last bits."""
    return TextToImage(eight_bit_parts(pipeline.parts, "weights"))


def latents_like(pipeline, request):
    bucket = request.canvas(pipeline.resolution).bucket
    return 5 * noise_like(np.empty((bucket.height // 8, bucket.width // 8, 4)))


def near(pipeline, request):
    """Near a picture."""
    return {"start": image_to_image(pipeline, request, latents_like(pipeline, request), 0.8)}


def followed(pipeline, request):
    """After a control picture, and of another one the right half is kept."""
    latents, canvas = latents_like(pipeline, request), request.canvas(pipeline.resolution)
    mask = np.arange(canvas.width) < np.full((canvas.height, 1), canvas.width // 2)
    control = pipeline.tokens_of(np.stack([-latents] * request.count), request)
    return {"start": inpainting(pipeline, request, latents, mask), "conditions": {"control": control}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A way of drawing.

    Attributes:
      mesh: of the eight devices.
      share: pictures and tokens of what is drawn that lie on each.
      request: its settings.
      model, parts: fields of the model, and of the parts, that are not as `Drawing` has them.
      lay: what is laid over the model, one after the other.
      begin: settings that are made of the request.
    """

    mesh: str
    share: tuple[int, int]
    request: Mapping[str, Any]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lay: tuple[Callable[[TextToImage], TextToImage], ...] = ()
    begin: Callable[[TextToImage, Request], Mapping[str, Any]] = lambda pipeline, request: {}


COMPRESSED = {"kv_compress": (1, 2)}
CASES = {
    "one picture over eight": Case("context=8", (1, 32), ONE),
    "branches over two, each over four": Case("data=2,context=4", (1, 64), ONE),
    "data is the rest, keys are compressed": Case("context=4", (1, 64), ONE, COMPRESSED),
    "one picture's branches, and three drawn for nothing": Case("data=8", (4, 256), ONE),
    "two pictures, with noise on the way": Case("context=2", (2, 128), TWO | {"sampler": "iddpm"}),
    "reuse, and a LoRA over int8": Case(
        "context=4", (1, 64), ONE | {"num_steps": 5, "reuse": "1.5"}, lay=(in_int8, with_lora)
    ),
    "interval": Case("context=4", (1, 64), ONE | {"guidance_interval": (400, 700)}),
    "few steps near a picture": Case(
        "data=2,context=4", (1, 64), ONE | {"sampler": "lcm", "negative_prompt": None}, begin=near
    ),
    "a ControlNet under a LoRA, and a part that is kept": Case(
        "data=2,context=4", (1, 64), ONE, COMPRESSED, lay=(with_control, with_lora), begin=followed
    ),
    "the dropped path": Case("context=8", (1, 32), ONE | {"guidance": DROPPED_PATH}, COMPRESSED, {"path_drop": (1, 1)}),
}


def encode_text(captions, told):
    """Features and length of each caption by its letters."""
    features = [np.random.default_rng(len(caption)).standard_normal((TEXT_TOKENS, 16)) for caption in captions]
    return np.float32(features), np.int32([min(len(caption), TEXT_TOKENS) for caption in captions])


class Drawing:
    """A tiny model on a mesh, whose pictures are none: `latents` are kept."""

    def __init__(self, mesh, case):
        fields = {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_dim": 16, "max_text_tokens": TEXT_TOKENS}
        model = PixArt(**fields | dict(case.model), attention=AttentionSpec(mesh=mesh))

        def weights():
            return jax.tree.map(
                lambda leaf: jax.device_put(noise_like(leaf), leaf.sharding), abstract_params(model, mesh)
            )

        def draw_latents(latents):
            self.latents = latents
            return iter(np.zeros((len(latents), 8 * latents.shape[1], 8 * latents.shape[2], 3), np.uint8))

        pipeline = TextToImage(
            Parts(
                name="tiny", model=model, weights=LazyParams(weights, keep=False), mesh=mesh, position_base=16,
                position_scale=1.0, latent_scale=1.0, has_null_text=True, encode_text=encode_text, decode_latents=iter,
                encode_pictures=lambda pictures: (pictures, pictures), caption_cleaning="none", sampler="dpm-solver",
                draw_latents=draw_latents, **case.parts,
            )
        )  # fmt: skip
        for lay in case.lay:
            pipeline = lay(pipeline)
        request = Request(**case.request)
        self._pipeline = pipeline
        self._request = dataclasses.replace(request, **case.begin(pipeline, request))

    def __call__(self):
        def look(glimpse):
            self.share = glimpse.tokens.sharding.shard_shape(glimpse.tokens.shape)[:2]

        self._pipeline.draw(self._request, watch=look)
        return self.latents


class Compiled(logging.Handler):
    """Names of the programs that XLA compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if match := re.match(r"Finished XLA compilation of (\S+)", record.getMessage()):
            self.names.append(match[1])


def main():
    compiled = Compiled()
    logger = logging.getLogger("jax._src")
    logger.addHandler(compiled)
    logger.propagate = False
    jax.config.update("jax_log_compiles", True)
    of_one: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        # Cases that differ in the mesh alone have one in common.
        key = repr(dataclasses.replace(case, mesh="", share=(0, 0)))
        if key not in of_one:
            of_one[key] = Drawing(make_mesh(MeshSpec(), jax.devices()[:1]), case)()
        expected = of_one[key]
        drawing = Drawing(drawing_mesh(parse_mesh(case.mesh), jax.devices()), case)
        compiled.names.clear()
        for _ in range(2):
            got = drawing()
        steps = compiled.names.count("jit(sample_step)")
        assert steps == 1, f"{name}: {steps} compilations of a step"
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < 1e-5, f"{name}: {error}"
        assert np.abs(expected).max() > 1 and drawing.share == case.share, f"{name}: {drawing.share}"
        print(name, flush=True)
        print(name, error, file=sys.stderr)


if __name__ == "__main__":
    main()
