"""T5 and the autoencoder with their weights: captions to text features, pictures to latents and back.

Each takes device memory only while it works, unless it is told to stay. The compiled programs stay in either case.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.conversion.arrays import read_json
from pixart_jax.conversion.encoder_kinds import build_vae
from pixart_jax.conversion.encoders import TOKENIZER, restore_text_encoder, restore_vae
from pixart_jax.data.cut_captions import CutCaptions
from pixart_jax.devices.finite import names, not_finite
from pixart_jax.devices.sharding import batch_sharding
from pixart_jax.encoding.spread import Spread, batches, round_up
from pixart_jax.encoding.tokenizer import load_tokenizer
from pixart_jax.errors import NotFinite
from pixart_jax.figures.images import to_uint8
from pixart_jax.models.layers import Dtype
from pixart_jax.models.t5 import encoder_from_config
from pixart_jax.models.tiles import decode_tiled, encode_tiled
from pixart_jax.shortcuts.eight_bits import in_eight_bits

# Cells along a side of the square up to which latents are decoded at once: 1024 px.
TILE_SIZE = 128

# Lengths, in tokens, that captions are padded to when they are encoded for good.
_TEXT_SIZES = (32, 64, 128)


def local_mesh() -> Mesh:
    """This process's devices, over which "fsdp" splits the parameters of what is too large for one of them."""
    devices = np.asarray(jax.local_devices())
    return Mesh(devices.reshape(1, -1), ("data", "fsdp"))


class LazyParams:
    """Parameters that are loaded when something starts to work.

    Args:
      load: gives the parameters, on devices.
      keep: leave them there afterwards.
    """

    def __init__(self, load: Callable[[], Any], *, keep: bool):
        self._load, self._keep, self._loaded = load, keep, None

    def __call__(self) -> Any:
        """The parameters; hold them no longer than they are needed."""
        loaded = self._load() if self._loaded is None else self._loaded
        self._loaded = loaded if self._keep else None
        return loaded

    def then(self, change: Callable[[Any], Any]) -> LazyParams:
        """What is made of these parameters, kept like them; these are not, unless they are asked for too."""
        return LazyParams(lambda: change(self._load()), keep=self._keep)


class T5TextEncoder:
    """T5 with its tokenizer: captions to text features.

    Args:
      directory: `text_encoder/`, as `tools.convert` writes it, with the tokenizer in `tokenizer/` below.
      max_tokens: text positions of every caption, its end token included; 120 for α, 300 for Σ.
      mesh: parameters are spread over "fsdp", captions over all devices.
      dtype: of matrix products.
      batch_size: captions at a time.
      keep: leave the weights on the devices between calls.
      int8: hold its kernels in int8, a quarter of float32's memory: T5-XXL's in 5 GB. Products are of `dtype`.

    Raises:
      InputError: the directory holds no T5 or no tokenizer, or a damaged one.

    Attributes:
      dim: width of the features.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        max_tokens: int,
        mesh: Mesh,
        dtype: Dtype = jnp.float32,
        batch_size: int = 8,
        keep: bool = False,
        int8: bool = False,
    ):
        directory = pathlib.Path(directory)
        config = directory / "config.json"
        self._model = encoder_from_config(read_json(config), path=config, dtype=dtype)
        self.dim, self.max_tokens = self._model.d_model, max_tokens
        self._tokenizer = load_tokenizer(directory / TOKENIZER)
        self._cut = CutCaptions()
        self._num_devices, self._batch_size = mesh.size, round_up(batch_size, mesh.size)
        self._place = functools.partial(jax.device_put, device=batch_sharding(mesh))
        self._directory = directory
        self._weights = LazyParams(lambda: restore_text_encoder(directory, mesh, dtype=dtype, int8=int8)[1], keep=keep)

    def tokenize(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids i32[n, max_tokens], padded at the end, and how many of them are real, i32[n].

        The end token always is the last; the words of a caption that is too long are cut before it, and a warning says
        which.
        """
        full = self._tokenizer(captions)
        ids = np.full((len(full), self.max_tokens), self._tokenizer.pad_token_id, np.int32)
        for row, caption, tokens in zip(ids, captions, full, strict=True):
            if len(tokens) > self.max_tokens:
                unread = functools.partial(self._tokenizer.decode, tokens[self.max_tokens - 1 : -1])
                self._cut.warn(caption, len(tokens), self.max_tokens, unread)
                tokens = [*tokens[: self.max_tokens - 1], tokens[-1]]
            row[: len(tokens)] = tokens
        return ids, np.minimum([len(tokens) for tokens in full], self.max_tokens).astype(np.int32)

    def encode(
        self, captions: Sequence[str], progress: Callable[[int], None] = lambda done: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Text features of n captions.

        Args:
          progress: told after each batch how many are done.

        Returns:
          (text f32[n, max_tokens, d_model], length i32[n]). As in PyTorch's pipelines, rows past a caption's length are
          not zero; nothing attends to them.

        Raises:
          NotFinite: the features hold NaN or infinity.
        """
        ids, length = self.tokenize(captions)
        params = self._weights()
        # Powers of two, so that calls with few captions share a few programs.
        batch_size = min(self._batch_size, round_up(2 ** (len(ids) - 1).bit_length(), self._num_devices))
        parts = []
        for rows in batches(len(ids), batch_size):
            parts.append(np.asarray(_features(self._model, params, *self._place((ids[rows], length[rows])))))
            progress(min(len(ids), batch_size * len(parts)))
        text = np.concatenate(parts)[: len(ids)]
        if not np.isfinite(text).all():
            raise NotFinite(self._fault(params))
        return text, length

    def _fault(self, params: Any) -> str:
        """Why features hold NaN or infinity."""
        begin = f"reading the captions: features of the text encoder {self._directory} hold NaN or infinity"
        if broken := not_finite(params):
            return f"{begin}; its weights hold it: {names(broken)}; convert it again from a sound file"
        return f"{begin}, though its weights do not: compute in float32, or convert it again"

    def probe(self) -> str:
        """A few digits that another T5, or the same with other weights, would hardly give."""
        (features,) = self.encode_trimmed(["a photograph of an astronaut riding a horse"], 1)
        return f"{self._model.num_layers}x{self.dim}:{_digits(features)}"

    def encode_trimmed(self, captions: Sequence[str], batch_size: int) -> list[np.ndarray]:
        """Features f32[length, d_model] of each caption, without padding.

        Captions of similar length share a program, which is as long as the longest of them needs: most are far shorter
        than `max_tokens`.

        Args:
          batch_size: captions at a time, rounded up to the number of devices.
        """
        if not captions:
            return []
        ids, length = self.tokenize(captions)
        params = self._weights()
        sizes = np.array([*(n for n in _TEXT_SIZES if n < self.max_tokens), self.max_tokens])
        size_of = sizes[np.searchsorted(sizes, length)]
        features: list[np.ndarray] = [np.empty(0)] * len(ids)
        for size in np.unique(size_of):
            members = np.flatnonzero(size_of == size)
            for rows in members[batches(len(members), round_up(batch_size, self._num_devices))]:
                batch = np.asarray(_features(self._model, params, *self._place((ids[rows, :size], length[rows]))))
                for row, text in zip(rows, batch, strict=True):
                    features[row] = text[: length[row]]
        return features


class Autoencoder:
    """The image autoencoder: pictures to latents and back.

    Args:
      directory: `vae/`, as `tools.convert` writes it.
      mesh: pictures are spread over all its devices, which have all parameters: of large ones the tiles, and where
        fewer are decoded than there are devices, strips.
      dtype: of convolutions and matrix products.
      tile_size: cells along a side of the square up to which latents are decoded at once; larger ones in tiles of it.
      keep: leave the weights on the devices between calls.

    Raises:
      InputError: the directory holds no autoencoder.

    Attributes:
      latent_scale: one over the std of the latents that it was trained on.
      latent_channels: C.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        mesh: Mesh,
        dtype: Dtype = jnp.float32,
        tile_size: int = TILE_SIZE,
        keep: bool = False,
    ):
        config = pathlib.Path(directory) / "config.json"
        self._model = build_vae(read_json(config), config, dtype)
        self.latent_scale, self.latent_channels = self._model.scaling_factor, self._model.latent_channels
        self._directory, self._tile_size, self._spread = directory, tile_size, Spread(mesh.devices)
        self._weights = LazyParams(lambda: restore_vae(directory, self._spread.mesh)[1], keep=keep)

    def probe(self) -> str:
        """A few digits that another autoencoder, or the same with other weights, would hardly give."""
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(1, 64, 64, 3).astype(np.uint8)
        return f"{self.latent_channels}x{self._model.downsample}:{_digits(self.encode(ramp, 1)[0])}"

    def encode(self, pictures: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The posterior of the latents of pictures of one size.

        Args:
          pictures: uint8[n, H, W, 3].
          batch_size: pictures at a time, rounded up to the number of devices. A picture's latents depend on it in the
            last bits, and on nothing else that is done with other pictures.

        Returns:
          (mean, std), f32[n, H/s, W/s, C] each, unscaled.
        """
        params = self._weights()
        downsample = self._model.downsample
        if pictures.shape[1] * pictures.shape[2] > (self._tile_size * downsample) ** 2:
            return encode_tiled(
                lambda tiles: _encode(self._model, params, self._spread.place(tiles)),
                pictures,
                downsample=downsample,
                tile_size=self._tile_size,
                at_once=self._spread.size,
            )
        parts = [
            jax.device_get(_encode(self._model, params, self._spread.place(pictures[rows])))
            for rows in batches(len(pictures), round_up(batch_size, self._spread.size))
        ]
        mean, std = (np.concatenate(arrays)[: len(pictures)] for arrays in zip(*parts, strict=True))
        return mean, std

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures f32[n, h·s, w·s, 3], about [-1, 1], of unscaled latents f32[n, h, w, C]; one per device at a time.

        Raises:
          NotFinite: as `decode_each`.
        """
        return np.stack([*self.decode_each(latents)])

    def decode_each(self, latents: np.ndarray, *, as_uint8: bool = False) -> Iterator[np.ndarray]:
        """As `decode`, but yields each picture as soon as it is decoded.

        Args:
          as_uint8: yields uint8[h·s, w·s, 3], as `figures.images.to_uint8` makes it, rounded on the device: a quarter
            of the bytes come back.

        Raises:
          NotFinite: one holds NaN or infinity.
        """
        params = self._weights()
        if latents.shape[1] * latents.shape[2] > self._tile_size**2:
            yield from self._decode_tiled(params, latents, as_uint8=as_uint8)
            return
        done, strips = 0, self._spread.strips(*latents.shape[:2])
        for rows in batches(len(latents), self._spread.size // strips):
            batch = self._spread.place(latents[rows], strips)
            if as_uint8:
                pictures, finite = jax.device_get(draw(self._model, params, batch))
            else:
                pictures = np.asarray(_decode(self._model, params, batch))
                finite = np.isfinite(pictures).all()
            if not finite:
                raise NotFinite(self._fault(params, latents[rows]))
            yield from pictures[: len(latents) - done]
            done += len(pictures)

    def _decode_tiled(self, params: Any, latents: np.ndarray, *, as_uint8: bool) -> Iterator[np.ndarray]:
        """The tiles of one picture lie on all devices, and so many are decoded at a time."""
        pictures = decode_tiled(
            lambda tiles: _decode(self._model, params, self._spread.place(tiles)),
            latents,
            tile_size=self._tile_size,
            at_once=self._spread.size,
        )
        for picture, cells in zip(pictures, latents, strict=True):
            if not np.isfinite(picture).all():
                raise NotFinite(self._fault(params, cells))
            yield to_uint8(picture) if as_uint8 else picture

    def _fault(self, params: Any, latents: np.ndarray) -> str:
        """Why pictures hold NaN or infinity."""
        begin = f"decoding: a picture of the autoencoder {self._directory} holds NaN or infinity"
        if broken := not_finite(params):
            return f"{begin}; its weights hold it: {names(broken)}; convert it again from a sound file"
        if not np.isfinite(latents).all():
            return f"{begin}; so do the latents: make them again"
        return f"{begin}, of latents up to {np.abs(latents).max():.3g}: compute in float32, or convert it again"


@functools.partial(jax.jit, static_argnums=0)
def _features(model, params, token_ids, text_length):
    return in_eight_bits(model.apply, "weights")({"params": params}, token_ids, text_length)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, pictures):
    return model.apply({"params": params}, pictures.astype(jnp.float32) / 127.5 - 1.0, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, params, latents):
    return model.apply({"params": params}, latents, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def draw(model, params, latents):
    """Pictures uint8[B, h·s, w·s, 3] of unscaled latents, and whether they were finite before they were rounded."""
    pictures = model.apply({"params": params}, latents, method="decode")
    return rounded(pictures), jnp.isfinite(pictures).all()


def rounded(pictures: jax.Array) -> jax.Array:
    """What `figures.images.to_uint8` gives, on the device, of finite pictures f32[...]."""
    return jnp.clip(jnp.rint((pictures.astype(jnp.float32) + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def _digits(array: np.ndarray) -> str:
    return f"{array.mean():.2e},{array.std():.3e}"
