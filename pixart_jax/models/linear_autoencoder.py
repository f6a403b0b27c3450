"""A linear autoencoder fitted in closed form: an offline stand-in for the VAE.

Every block×block square of pixels is projected on the leading principal components of the training blocks, so the
latent grid is an eighth of the picture, as the VAE's is, and everything between encoder and decoder is the same program
with either one. It is good only at the kind of pictures it was fitted to. Of the quickstart's 256 emoji at 64 px it
keeps, with 8, 12 and 16 channels, 20.5, 22.1 and 23.1 dB (PSNR): shapes and colours survive, fine lines turn blocky.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import einops
import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.files.arrays import read_npz

_FIELDS = ("mean", "basis", "channel_scale", "latent_scale", "block")
# Of a file: far more than any has.
_MAX_BYTES = 64 << 20
# Below this share of the blocks' total variance a component is rounding noise, not to be divided by its std.
_NEGLIGIBLE_VARIANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class LinearAutoencoder:
    """Principal components of pixel blocks, as an autoencoder.

    Its arrays are constants, so a jitted function may close over it.

    Attributes:
      mean: f32[block·block·3], the mean training block, flattened (row, column, colour).
      basis: f32[block·block·3, C], orthonormal columns, most variance first.
      channel_scale: f32[C], what each channel is divided by: its std over the training blocks, to the power
        `whitening`.
      latent_scale: multiplying latents by it gives the training latents an overall std of 1, like a VAE's scale factor.
        `encode` does not apply it: as with the VAE, whoever makes tokens does.
      block: side of a block in pixels, the downsampling factor.
    """

    mean: np.ndarray
    basis: np.ndarray
    channel_scale: np.ndarray
    latent_scale: float
    block: int

    @property
    def channels(self) -> int:
        return self.basis.shape[1]

    @classmethod
    def fit(cls, images, block: int = 8, channels: int = 12, whitening: float = 0.5) -> LinearAutoencoder:
        """Fits to f32[B, H, W, 3] in [-1, 1] by eigendecomposition of the blocks' covariance, in float64.

        Args:
          images: training pictures, whose height and width are multiples of `block`.
          block: side of a block in pixels.
          channels: number of components kept, at most block·block·3.
          whitening: 0 leaves the components at their own scale: the diffusion loss is then pixel error, but the fine
            components, down to a tenth of the coarsest, drown in noise at all but the last timesteps. 1 gives all of
            them unit variance: as much of the loss goes to details nobody sees as to shape and colour. The default,
            halfway, lets every channel be learned and keeps the coarse ones first.

        Raises:
          InputError: bad shape or range, or pictures with fewer independent block patterns than `channels`.
        """
        images = np.asarray(images)
        _check_images(images, block)
        if images.ndim != 4 or images.shape[0] == 0:
            raise InputError(f"LinearAutoencoder.fit needs a batch of pictures [B, H, W, 3], got shape {images.shape}")
        if not np.isfinite(images).all() or np.abs(images).max() > 1.001:
            raise InputError(
                "LinearAutoencoder.fit needs finite pixel values in [-1, 1]; divide uint8 by 127.5 and subtract 1"
            )
        size = block * block * 3
        if not 1 <= channels <= size:
            raise InputError(f"channels={channels} must be between 1 and block·block·3 = {size}")

        blocks = _to_blocks(images.astype(np.float64), block).reshape(-1, size)
        mean = blocks.mean(axis=0)
        centred = blocks - mean
        variance, basis = np.linalg.eigh(centred.T @ centred / len(blocks))
        variance, basis = variance[::-1][:channels], basis[:, ::-1][:, :channels]
        usable = int((variance > _NEGLIGIBLE_VARIANCE * np.trace(centred.T @ centred) / len(blocks)).sum())
        if usable < channels:
            raise InputError(
                f"these pictures have only {usable} independent {block}x{block} block patterns, fewer than "
                f"channels={channels}; give more varied pictures or ask for fewer channels"
            )

        # An eigenvector's sign is arbitrary. The probe is in general position, so that its product with a leading
        # pattern (a gradient, a checkerboard) is not near zero, where rounding would make the choice.
        probe = np.cos(np.arange(size) ** 2.0)
        basis = basis * np.where(probe @ basis < 0, -1.0, 1.0)
        channel_scale = np.sqrt(variance) ** whitening
        overall_std = np.sqrt(np.mean(variance / channel_scale**2))  # centred, so each channel's mean is zero
        return cls(
            mean=mean.astype(np.float32),
            basis=np.ascontiguousarray(basis, dtype=np.float32),
            channel_scale=channel_scale.astype(np.float32),
            latent_scale=float(1.0 / overall_std),
            block=block,
        )

    def encode(self, images):
        """Images f32[..., H, W, 3] in [-1, 1], numpy or jax, to latents f32[..., H/block, W/block, C] of the same kind.

        Raises:
          InputError: the last axis is not 3, or H or W is not a multiple of `block`.
        """
        _check_images(images, self.block)
        return (_to_blocks(images, self.block) - self.mean) @ (self.basis / self.channel_scale)

    def decode(self, latents):
        """Latents f32[..., h, w, C] (not multiplied by `latent_scale`) to images f32[..., h·block, w·block, 3].

        The images may leave [-1, 1] a little at sharp edges; clip when writing them out.
        """
        if latents.shape[-1] != self.channels:
            raise InputError(f"latents have {latents.shape[-1]} channels, the linear autoencoder {self.channels}")
        blocks = latents @ (self.basis * self.channel_scale).T + self.mean
        return einops.rearrange(
            blocks, "... gh gw (ph pw c) -> ... (gh ph) (gw pw) c", ph=self.block, pw=self.block, c=3
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz`; a reader sees the whole file or none."""
        write_atomically(path, lambda file: np.savez(file, **{name: getattr(self, name) for name in _FIELDS}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> LinearAutoencoder:
        """Reads what `save` wrote.

        Raises:
          InputError: the file is missing, unreadable, or does not hold a linear autoencoder.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no linear autoencoder there; make the data set again")
        values = read_npz(path, _FIELDS, "a linear autoencoder", "make the data set again", _MAX_BYTES)
        try:
            block, latent_scale = int(values["block"]), float(values["latent_scale"])
            size, channels = values["basis"].shape
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: not a linear autoencoder ({error}); make the data set again") from error
        if (
            size != block * block * 3
            or values["mean"].shape != (size,)
            or values["channel_scale"].shape != (channels,)
            or not all(np.isfinite(value).all() for value in values.values())
        ):
            raise InputError(
                f"{path}: the arrays of this linear autoencoder do not fit together; make the data set again"
            )
        return cls(
            mean=values["mean"].astype(np.float32),
            basis=values["basis"].astype(np.float32),
            channel_scale=values["channel_scale"].astype(np.float32),
            latent_scale=latent_scale,
            block=block,
        )


def _to_blocks(images, block: int):
    return einops.rearrange(images, "... (gh ph) (gw pw) c -> ... gh gw (ph pw c)", ph=block, pw=block)


def _check_images(images, block: int) -> None:
    shape = images.shape
    if len(shape) < 3 or shape[-1] != 3 or shape[-3] % block or shape[-2] % block:
        raise InputError(
            f"the linear autoencoder takes images [..., H, W, 3] with H and W multiples of {block}, got {tuple(shape)}"
        )
