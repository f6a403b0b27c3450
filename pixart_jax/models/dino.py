"""DINOv2, with and without registers, and DINOv3: vision transformers, for their features of a picture's patches.

Sources: Oquab et al. 2023 (arXiv:2304.07193); Darcet et al. 2023 (arXiv:2309.16588) for registers; Siméoni et al. 2025
(arXiv:2508.10104). As transformers computes them: position tables are resized by its rule, facebook's own being shifted
by a tenth of a patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Of the pixels' values in [0, 1], by channel: ImageNet's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class DinoSizes:
    """What DINOs differ in.

    Attributes:
      hidden_size, depth, num_heads, mlp_size, patch_size: as of any ViT.
      registers: tokens beside the patches that hold nothing of a place.
      positions: patches along a side of the table of positions; 0 rotates queries and keys by their place instead, as
        DINOv3 does.
      antialias: whether the table is smoothed where it is made smaller, as DINOv2's with registers is.
      gated: the MLP is a gated one.
      activation: of the MLP, a key of ACTIVATIONS.
      eps: of LayerNorm.
      rope_base: of the rotation.
    """

    hidden_size: int
    depth: int
    num_heads: int
    mlp_size: int
    patch_size: int
    registers: int = 0
    positions: int = 0
    antialias: bool = False
    gated: bool = False
    activation: str = "gelu"
    eps: float = 1e-6
    rope_base: float = 100.0


class DinoFeatures(NamedTuple):
    """After the last norm: of the whole picture f32[B, D], of its patches f32[B, H/p, W/p, D]."""

    whole: jax.Array
    patches: jax.Array


class Dino(nn.Module):
    """Pictures to features.

    `__call__`: f32[B, H, W, 3], values in [0, 1] less MEAN over STD, whole patches along both sides → `DinoFeatures`.
    Products are exact to float32, so that features are those of every other implementation.
    """

    sizes: DinoSizes

    @nn.compact
    def __call__(self, pictures) -> DinoFeatures:
        sizes, patch, count = self.sizes, (self.sizes.patch_size,) * 2, len(pictures)
        width = sizes.hidden_size
        with jax.default_matmul_precision("highest"):
            patches = nn.Conv(width, patch, patch, "VALID", name="patch_embed")(pictures)
            grid = (patches.shape[1], patches.shape[2])
            x = jnp.concatenate([self._token("cls_token", count), patches.reshape(count, -1, width)], axis=1)
            rotation = None
            if sizes.positions:
                table = self.param("pos_embed", nn.initializers.normal(0.02), (sizes.positions**2 + 1, width))
                x = x + _resized(table, sizes.positions, grid, sizes.antialias)
            else:
                rotation = _rotation(grid, width // sizes.num_heads, sizes.rope_base)
            if sizes.registers:
                registers = self._token("register_tokens", count, sizes.registers)
                x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
            for number in range(sizes.depth):
                x = _Block(sizes, name=f"blocks_{number}")(x, rotation)
            x = _norm(sizes, "norm")(x)
        return DinoFeatures(x[:, 0], x[:, 1 + sizes.registers :].reshape(count, *grid, width))

    def _token(self, name: str, batch: int, count: int = 1):
        token = self.param(name, nn.initializers.normal(0.02), (count, self.sizes.hidden_size))
        return jnp.broadcast_to(token, (batch, *token.shape))


class _Block(nn.Module):
    """Two residual branches, each scaled by channel."""

    sizes: DinoSizes

    @nn.compact
    def __call__(self, x, rotation):
        sizes, width = self.sizes, x.shape[-1]
        qkv = nn.Dense(3 * width, name="qkv")(_norm(sizes, "norm1")(x))
        q, k, v = einops.rearrange(qkv, "b n (part h d) -> part b n h d", part=3, h=sizes.num_heads)
        if rotation is not None:
            q, k = (_rotated(y, rotation) for y in (q, k))
        out = einops.rearrange(jax.nn.dot_product_attention(q, k, v), "b n h d -> b n (h d)")
        x = x + self._scale("ls1", width) * nn.Dense(width, name="proj")(out)
        hidden = nn.Dense(sizes.mlp_size * (2 if sizes.gated else 1), name="fc1")(_norm(sizes, "norm2")(x))
        gate, *rest = jnp.split(hidden, 2, axis=-1) if sizes.gated else [hidden]
        hidden = ACTIVATIONS[sizes.activation](gate) * (rest[0] if rest else 1)
        return x + self._scale("ls2", width) * nn.Dense(width, name="fc2")(hidden)

    def _scale(self, name: str, width: int):
        return self.param(name, nn.initializers.ones_init(), (width,))


def _norm(sizes: DinoSizes, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(sizes.eps, use_fast_variance=False, name=name)


def _rotation(grid: tuple[int, int], width: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin f32[N, width] of each patch's place, by row and column in (-1, 1)."""
    rows, columns = (2 * (np.arange(n) + 0.5) / n - 1 for n in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = 2 * math.pi * places / base ** np.arange(0, 1, 4 / width)
    angles = np.tile(angles.reshape(len(angles), -1), 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(y, rotation):
    """[B, 1 + registers + N, heads, d], whose last N are rotated."""
    cos, sin = (part[:, None] for part in rotation)
    first, last = y[:, : -len(cos)], y[:, -len(cos) :]
    left, right = jnp.split(last, 2, axis=-1)
    return jnp.concatenate([first, last * cos + jnp.concatenate([-right, left], -1) * sin], axis=1)


def _resized(table, side: int, grid: tuple[int, int], antialias: bool):
    """The table of positions f32[1 + side², D] for a grid of patches: f32[1 + N, D]."""
    if grid == (side, side):
        return table
    rows, columns = (bicubic_weights(side, new, antialias) for new in grid)
    patches = jnp.einsum("rh,cw,hwd->rcd", rows, columns, table[1:].reshape(side, side, -1))
    return jnp.concatenate([table[:1], patches.reshape(grid[0] * grid[1], -1)])


def bicubic_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """f32[new, old]: PyTorch's bicubic resize of a line, `align_corners=False`.

    Antialiased it is Pillow's cubic, stretched where the line becomes shorter, of what lies inside; else PyTorch's own,
    of the nearest four, the line's ends repeating.
    """
    scale, cubic = old / new, -0.5 if antialias else -0.75
    stretch = max(scale, 1.0) if antialias else 1.0
    centre = scale * (np.arange(new) + 0.5) - 0.5
    reach = math.ceil(2 * stretch) + 1
    taps = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(taps - centre[:, None]) / stretch
    near = ((cubic + 2) * x - (cubic + 3)) * x * x + 1
    far = cubic * (((x - 5) * x + 8) * x - 4)
    values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    if antialias:
        values = np.where((taps >= 0) & (taps < old), values, 0.0)
        values /= values.sum(1, keepdims=True)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)), values)
    return weights.astype(np.float32)
