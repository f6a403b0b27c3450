"""The control picture that is made of a picture: its edges, or the picture as it is."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.conversion.hed import load_hed
from pixart_jax.data.canny import canny
from pixart_jax.encoding.spread import Spread
from pixart_jax.errors import InputError
from pixart_jax.models.hed import UNIT, Hed
from pixart_jax.models.layers import Dtype

# What is made of a picture: "none" leaves it as it is.
KINDS = ("hed", "canny", "none")


class MakeControl(Protocol):
    """Pictures uint8[n, H, W, 3] of one size to control pictures f32[n, H, W, 3] in [0, 255]."""

    def __call__(self, pictures: np.ndarray, /) -> np.ndarray: ...

    def probe(self) -> str:
        """A few digits that tell it from another one."""


class AsItIs:
    """The picture itself."""

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.astype(np.float32)

    def probe(self) -> str:
        return "none"


class CannyEdges:
    """White edges on black; see `data.canny`."""

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return _grey(np.stack([canny(picture) for picture in pictures]))

    def probe(self) -> str:
        return "canny"


class HedEdges:
    """Edges as bright as HED is sure of them; PixArt's and Stable Diffusion's ControlNets were trained on these.

    Args:
      path: the published weights, see `conversion.hed.load_hed`. They stay on all devices of this process.
      dtype: of the convolutions.

    Raises:
      InputError: as `load_hed`.
    """

    def __init__(self, path: pathlib.Path, dtype: Dtype = jnp.float32):
        self._model, self._spread = Hed(dtype=dtype), Spread()
        self._params = self._spread.on_each(load_hed(path))

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        # No more at a time: the first stage of a picture of 1024 px has half a gigabyte.
        edges = self._spread.one_on_each(functools.partial(_edges, self._model, self._params), _whole_units(pictures))
        return _grey(edges[:, : pictures.shape[1], : pictures.shape[2]])

    def probe(self) -> str:
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(1, 64, 64, 3).astype(np.uint8)
        return f"hed:{self(ramp).mean():.4e}"


def open_edges(kind: str, hed: pathlib.Path | None, *, option: str, dtype: Dtype = jnp.float32) -> MakeControl:
    """What makes control pictures of that kind.

    Args:
      kind: one of KINDS.
      hed: HED's weights, which no other kind heeds.
      option: what the user calls `hed`, for errors.

    Raises:
      InputError: there are no weights where they are needed, or some where not, or they are another network's.
    """
    if kind == "hed":
        if hed is None:
            raise InputError(f"HED's edges need its weights: name ControlNetHED.pth ({option}), or take Canny's")
        return HedEdges(hed, dtype)
    if hed is not None:
        raise InputError(f"{option} is for HED's edges, and these are to be {kind!r}; leave it out")
    return CannyEdges() if kind == "canny" else AsItIs()


def _grey(edges: np.ndarray) -> np.ndarray:
    """Edges [n, H, W] in [0, 1] as pictures."""
    return np.repeat(edges.astype(np.float32)[..., None] * np.float32(255), 3, axis=-1)


def _whole_units(pictures: np.ndarray) -> np.ndarray:
    """Pictures whose sides HED can halve: the border repeats itself. Every bucket is one already."""
    rows, columns = (-side % UNIT for side in pictures.shape[1:3])
    return np.pad(pictures, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else pictures


@functools.partial(jax.jit, static_argnums=0)
def _edges(model: Hed, params: Any, pictures):
    return model.apply({"params": params}, pictures.astype(jnp.float32))
