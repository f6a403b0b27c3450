"""Token space: latents as a sequence of patches with coordinates.

Everything between the autoencoder's encoder and its decoder happens on tokens. A patch is flattened (row, column,
channel), channel fastest, which is the order of the reference's final linear layer.
"""

from __future__ import annotations

import einops
import numpy as np

from pixart_jax.errors import InputError

# Pixels per latent cell of every autoencoder PixArt has used.
DOWNSAMPLE = 8


def patchify(latents, patch_size: int):
    """Cuts latents [..., H, W, C] into row-major tokens [..., (H/p)(W/p), p·p·C]."""
    return einops.rearrange(latents, "... (gh ph) (gw pw) c -> ... (gh gw) (ph pw c)", ph=patch_size, pw=patch_size)


def unpatchify(tokens, grid: tuple[int, int], patch_size: int):
    """Puts row-major tokens [..., gh·gw, p·p·C] back together as latents [..., gh·p, gw·p, C]."""
    return einops.rearrange(
        tokens,
        "... (gh gw) (ph pw c) -> ... (gh ph) (gw pw) c",
        gh=grid[0],
        gw=grid[1],
        ph=patch_size,
        pw=patch_size,
    )


def grid_positions(grid: tuple[int, int], base_size: int, position_scale: float) -> np.ndarray:
    """(row, column) coordinates of a token grid, row-major, as the sin-cos table expects them.

    Each axis is stretched on its own, so that every aspect ratio spans [0, base_size / position_scale) on both axes.

    Args:
      grid: token rows and columns.
      base_size: tokens along one side of the resolution's square (16 at 256 px, 64 at 1024 px).
      position_scale: the reference's `lewei_scale` / `pe_interpolation`.

    Returns:
      f32[gh·gw, 2].
    """
    rows, cols = (np.arange(n, dtype=np.float32) / np.float32(n / base_size) / np.float32(position_scale) for n in grid)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


def block_order(grid: tuple[int, int], ratio: int) -> np.ndarray:
    """Row-major token index held by each place of the block-major order.

    In block-major order each run of ratio² consecutive tokens is one ratio×ratio block of the grid, so key/value
    compression needs no knowledge of the grid. `tokens[block_order(...)]` reorders; `np.argsort(block_order(...))`
    undoes it.

    Raises:
      InputError: the grid is not a whole number of blocks.
    """
    if grid[0] % ratio or grid[1] % ratio:
        raise InputError(
            f"a token grid of {grid[0]}x{grid[1]} cannot be cut into {ratio}x{ratio} blocks for key/value compression; "
            f"use buckets whose token rows and columns are multiples of {ratio}, or model.kv_compress_ratio = 1"
        )
    index = np.arange(grid[0] * grid[1]).reshape(grid)
    return einops.rearrange(index, "(bh rh) (bw rw) -> (bh bw rh rw)", rh=ratio, rw=ratio)


def latents_to_tokens(latents: np.ndarray, patch_size: int, num_tokens: int, block_ratio: int = 1) -> np.ndarray:
    """Latents, or noise, f32[..., h, w, C] as tokens f32[..., num_tokens, p·p·C], zeros after the real ones."""
    grid = (latents.shape[-3] // patch_size, latents.shape[-2] // patch_size)
    tokens = patchify(latents, patch_size)[..., block_order(grid, block_ratio), :]
    return np.pad(tokens, [(0, 0)] * (latents.ndim - 3) + [(0, num_tokens - tokens.shape[-2]), (0, 0)])


def tokens_to_latents(
    tokens: np.ndarray, grid: tuple[int, int], patch_size: int, latent_scale: float, block_ratio: int = 1
) -> np.ndarray:
    """Tokens f32[..., N, p·p·C], padding included, back to unscaled latents f32[..., h, w, C]."""
    real = np.asarray(tokens[..., : grid[0] * grid[1], :], np.float32)
    return grid_latents(real, grid, patch_size, latent_scale, block_ratio)


def grid_latents(tokens, grid: tuple[int, int], patch_size: int, latent_scale: float, block_ratio: int = 1):
    """As `tokens_to_latents`, of numpy's or jax's tokens, to arrays of the same kind."""
    tokens = tokens[..., : grid[0] * grid[1], :][..., np.argsort(block_order(grid, block_ratio)), :]
    return unpatchify(tokens, grid, patch_size) / latent_scale


def same_latent_scale(one: float, other: float) -> bool:
    """Whether two latent scales are one autoencoder's; a file that was written from float32 has rounded its own."""
    return abs(one / other - 1) <= 1e-6
