"""What test_placing.py runs in a process of its own, because the number of simulated devices is fixed at the start.

Prints a line for each way of drawing whose latents were those of one device, unless one's are not.
"""

import logging
import re
import sys

import jax
import numpy as np

from pixart_jax.devices.sharding import MeshSpec, make_mesh
from pixart_jax.generation.parts import Parts
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.placing import drawing_mesh, parse_mesh
from pixart_jax.models.attention import AttentionSpec
from pixart_jax.models.params import abstract_params
from pixart_jax.models.pixart import PixArt

TEXT_TOKENS = 12
# Padding: 240 of 256 tokens, and captions of other lengths.
ONE = {"prompts": ["red"], "negative_prompt": "a blue dog", "aspect_ratio": "5:3", "num_steps": 4}
TWO = {"prompts": ["red", "a blue dog in fog"], "num_steps": 4}
# (mesh, model, request, pictures and tokens of what is drawn that lie on each device)
CASES = {
    "one picture over eight": ("context=8", {}, ONE, (1, 32)),
    "branches over two, each over four": ("data=2,context=4", {}, ONE, (1, 64)),
    "data is the rest, keys are compressed": ("context=4", {"kv_compress": (1, 2)}, ONE, (1, 64)),
    "one picture's branches, and three drawn for nothing": ("data=8", {}, ONE, (4, 256)),
    "two pictures, with noise on the way": ("context=2", {}, TWO | {"sampler": "iddpm"}, (2, 128)),
    "reuse": ("context=4", {}, ONE | {"num_steps": 5, "reuse": "1.5"}, (1, 64)),
    "interval": ("context=4", {}, ONE | {"guidance_interval": (400, 700)}, (1, 64)),
    "no guidance": ("data=2,context=4", {}, ONE | {"guidance": "none", "negative_prompt": None}, (1, 64)),
}


def encode_text(captions, told):
    """Features and length of each caption by its letters."""
    features = [np.random.default_rng(len(caption)).standard_normal((TEXT_TOKENS, 16)) for caption in captions]
    return np.float32(features), np.int32([min(len(caption), TEXT_TOKENS) for caption in captions])


class Drawing:
    """A tiny model on a mesh, whose pictures are none: `latents` are kept."""

    def __init__(self, mesh, **fields):
        model = PixArt(
            hidden_size=32, depth=2, num_heads=2, text_dim=16, max_text_tokens=TEXT_TOKENS, **fields,
            attention=AttentionSpec(mesh=mesh),
        )  # fmt: skip

        def weights():
            """Noise on all, because some start at zero and would hide what comes before them."""
            rng = np.random.default_rng(0)

            def place(leaf):
                return jax.device_put(0.2 * rng.standard_normal(leaf.shape, np.float32), leaf.sharding)

            return jax.tree.map(place, abstract_params(model, mesh))

        def draw_latents(latents):
            self.latents = latents
            return iter(np.zeros((len(latents), 8 * latents.shape[1], 8 * latents.shape[2], 3), np.uint8))

        self.pipeline = TextToImage(
            Parts(
                name="tiny", model=model, weights=weights, mesh=mesh, position_base=16, position_scale=1.0,
                latent_scale=1.0, has_null_text=True, encode_text=encode_text, decode_latents=iter,
                encode_pictures=lambda pictures: (pictures, pictures), caption_cleaning="none", sampler="dpm-solver",
                draw_latents=draw_latents,
            )
        )  # fmt: skip

    def __call__(self, request):
        def look(glimpse):
            self.share = glimpse.tokens.sharding.shard_shape(glimpse.tokens.shape)[:2]

        self.pipeline(**request, watch=look)
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
    for name, (mesh, fields, request, share) in CASES.items():
        expected = Drawing(make_mesh(MeshSpec(), jax.devices()[:1]), **fields)(request)
        drawing = Drawing(drawing_mesh(parse_mesh(mesh), jax.devices()), **fields)
        compiled.names.clear()
        for _ in range(2):
            got = drawing(request)
        steps = compiled.names.count("jit(sample_step)")
        assert steps == 1, f"{name}: {steps} compilations of a step"
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < 1e-5, f"{name}: {error}"
        assert np.abs(expected).max() > 1 and drawing.share == share, f"{name}: {drawing.share}"
        print(name, flush=True)
        print(name, error, file=sys.stderr)


if __name__ == "__main__":
    main()
