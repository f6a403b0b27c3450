"""What frozen networks see in pictures, as a grid of features: the targets of representation alignment.

Any network may be one: `PictureFeatures` is the seam, `open_features` names those that there are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.conversion.dino import load_dino
from pixart_jax.conversion.efficientnet import load_efficientnet
from pixart_jax.encoding.spread import Spread
from pixart_jax.errors import InputError
from pixart_jax.models.dino import MEAN, STD
from pixart_jax.models.efficientnet import NUM_FEATURES, EfficientNetLite

KINDS = ("dino", "efficientnet-lite0")
# Of each: features of a picture at most, and whether there may be more than tokens. EfficientNet-lite0 sees nothing in
# small pictures: it is trained on 224 pixels, of which it makes seven by seven.
GRIDS = {"dino": (256, False), "efficientnet-lite0": (49, True)}
EFFICIENTNETS_CELL = 32
# Pixels of a picture to one of the model's tokens along each side: its own grid, which features need not be finer than.
PIXELS_PER_TOKEN = 16


@dataclasses.dataclass(frozen=True, eq=False)
class PictureFeatures:
    """A frozen network that looks at pictures, one on each device.

    Attributes:
      name: of its kind and weights: a set's `Manifest.align`.
      dim: F, of a feature.
      cell: pixels that a feature is of, along each side, in the network's own picture.
      most: features of a picture at most: 256 are 16 by 16.
      finer: whether there may be more of them than tokens, for a network that sees nothing in small pictures.
      apply: (parameters, pictures f32[n, a·cell, b·cell, 3] in [0, 255]) -> f32[n, a, b, F].
      spread: the devices.
      params: its parameters, on all of them.
    """

    name: str
    dim: int
    cell: int
    most: int
    finer: bool
    apply: Callable[[Any, jax.Array], jax.Array]
    spread: Spread
    params: Any

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(a, b) of a picture of so many pixels: its tokens' grid, or where those are too many one of its shape."""
        return feature_grid(height, width, self.most, self.finer)

    def bytes_per_picture(self, height: int, width: int) -> int:
        """What they take of a shard."""
        return math.prod(self.grid(height, width)) * self.dim * 2

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float16[n, a, b, F] of pictures uint8[n, H, W, 3] of one size. Of each only the direction is of use."""
        grid = self.grid(*pictures.shape[1:3])
        return self.spread.one_on_each(lambda some: self._program(self.params, some, grid), pictures)

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        def run(params, pictures, grid):
            size = (len(pictures), grid[0] * self.cell, grid[1] * self.cell, 3)
            pictures = jnp.clip(jax.image.resize(pictures.astype(jnp.float32), size, "cubic"), 0, 255)
            return self.apply(params, pictures).astype(jnp.float16)

        return jax.jit(run, static_argnums=2)

    def probe(self) -> str:
        """A few digits that tell it from another one."""
        side = PIXELS_PER_TOKEN * 4
        ramp = np.linspace(0, 255, side * side * 3).reshape(1, side, side, 3).astype(np.uint8)
        return f"{self.name}:{np.abs(self(ramp).astype(np.float32)).mean():.4e}"


def feature_grid(height: int, width: int, most: int, finer: bool) -> tuple[int, int]:
    """`PictureFeatures.grid`."""
    tokens = height / PIXELS_PER_TOKEN, width / PIXELS_PER_TOKEN
    scale = math.sqrt(most / (tokens[0] * tokens[1]))
    scale = scale if finer else min(scale, 1.0)
    a, b = (max(round(side * scale), 1) for side in tokens)
    return a, b


def open_features(kind: str, path: pathlib.Path) -> PictureFeatures:
    """A network with its weights.

    Args:
      kind: one of KINDS.
      path: see `conversion.dino.load_dino` and `conversion.efficientnet.load_efficientnet`.

    Raises:
      InputError: the weights are missing, damaged or another network's.
    """
    if kind not in KINDS:
        raise InputError(f"features {kind!r}: must be of one of {', '.join(KINDS)}")
    if not path.exists():
        raise InputError(f"{path} does not exist; name the weights of the network that pictures are aligned with")
    name, spread = f"{kind}:{path.stem}", Spread()
    apply: Callable[[Any, jax.Array], jax.Array]
    if kind == "dino":
        network, params = load_dino(path)
        sizes = network.sizes
        apply = functools.partial(_dino, network)
        shape = sizes.hidden_size, sizes.patch_size
    else:
        params, apply, shape = load_efficientnet(path), _efficientnet, (NUM_FEATURES, EFFICIENTNETS_CELL)
    return PictureFeatures(name, *shape, *GRIDS[kind], apply, spread, spread.on_each(params))


def _dino(network, params, pictures):
    mean, std = (np.array(values, np.float32) for values in (MEAN, STD))
    pictures = (pictures / 255 - mean) / std
    return network.apply({"params": params}, pictures).patches


def _efficientnet(params, pictures):
    """What its last layer averages."""
    _, seen = EfficientNetLite().apply(
        {"params": params},
        (pictures - 127) / 128,
        capture_intermediates=lambda module, _: module.path == ("bn1",),
        mutable=["intermediates"],
    )
    return jnp.clip(seen["intermediates"]["bn1"]["__call__"][0], 0, 6)
