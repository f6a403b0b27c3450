"""ControlNet for PixArt: trainable copies of the first blocks turn a control picture into residuals of a frozen model.

Source: PixArt-δ (Chen et al. 2024), "ControlNet-Transformer". The control picture (an edge map) becomes tokens as any
picture does, through the autoencoder, the latent scale and the base model's own embedder. Copy j's output, projected,
is added to the input of the base model's block j + 1.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.models.layers import zeros
from pixart_jax.models.pixart import Block, BlockConditions, ModelOutput, PixArt, rematerialized


class ControlBlock(Block):
    """A block that hands its output, through a projection that starts at zero, to the base model."""

    @nn.compact
    def __call__(self, x, residual, cond: BlockConditions):
        """As `Block`, but returns (x, its projection) of [B, N, D] each."""
        x, _ = super().__call__(x, residual, cond)
        return x, nn.Dense(x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="after_proj")(x)


class ControlNet(nn.Module):
    """The copies of a base model's first blocks.

    Attributes:
      base: the model to control. Only its fields are read: its parameters are never part of the ControlNet's.
      num_copies: how many blocks are copied; the reference copies 13 of 28.
    """

    base: PixArt
    num_copies: int = 13

    @nn.compact
    def __call__(self, control, x, cond: BlockConditions):
        """Residuals for the base model's blocks.

        Args:
          control: [B, N, D], the control's tokens, embedded by the base model.
          x: [B, N, D], what the base model's block 0 makes of the noisy tokens.
          cond: the base model's conditions.

        Returns:
          [depth, B, N, D] in the base model's dtype, for `PixArt`'s `block_residuals`; zero but for blocks 1 to
          num_copies. The zeros are the price (at 1024 px in bfloat16, half of 264 MB per picture) of a base model that
          scans its blocks without knowing which are controlled.

        Raises:
          ValueError: as `stacks`.
        """
        base = self.base
        x = x + nn.Dense(base.hidden_size, kernel_init=zeros, dtype=base.dtype, name="before_proj")(control)
        found = []
        for name, length, ratio in self.stacks():
            unroll = min(base.scan_unroll, length)
            x, residuals = nn.scan(
                rematerialized(ControlBlock, base.remat, unroll=unroll, length=length),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=length,
                unroll=unroll,
            )(**base.block_fields(ratio), name=name)(x, None, cond)
            found.append(residuals)
        residuals = found[0] if len(found) == 1 else jnp.concatenate(found)
        return jnp.pad(residuals, ((1, base.depth - 1 - self.num_copies), (0, 0), (0, 0), (0, 0)))

    @nn.nowrap
    def stacks(self) -> list[tuple[str, int, int]]:
        """(name of the parameters, number of copies, kv ratio) of each run of equal copies; see `PixArt.segments`.

        Raises:
          ValueError: num_copies does not fit the base model.
        """
        if not 1 <= self.num_copies <= self.base.depth - 1:
            raise ValueError(
                f"num_copies={self.num_copies}: must be at least 1, and below the base model's depth of "
                f"{self.base.depth}"
            )
        return [
            (stack_name(first), min(length, self.num_copies - first), ratio)
            for first, length, ratio in self.base.segments()
            if first < self.num_copies
        ]


def stack_name(first: int) -> str:
    """What the copies of a run of equal blocks are called, by the first of them."""
    return f"copies_{first}" if first else "copies"


def copy_blocks(base_params, num_copies: int = 13) -> dict:
    """The parameters with which a ControlNet starts: the base model's first blocks, and projections of zero.

    With them the base model's output is unchanged.
    """
    size = base_params["x_embedder"]["bias"].shape[0]
    projection = {"kernel": jnp.zeros((size, size)), "bias": jnp.zeros(size)}
    params = {"before_proj": projection}
    firsts = sorted(int(name.removeprefix("blocks_")) for name in base_params if name.startswith("blocks_"))
    for first in firsts:
        if (count := num_copies - first) > 0:
            stack = dict(base_params[f"blocks_{first}"])
            copies = jax.tree.map(lambda array, count=count: array[:count], stack)
            length = len(jax.tree.leaves(copies)[0])
            zero = jax.tree.map(lambda array, length=length: jnp.zeros((length, *array.shape)), projection)
            params[stack_name(first)] = copies | {"after_proj": zero}
    return params


def control_residuals(
    controlnet: ControlNet, base_params, params, tokens, t, *, control, positions, **conditions
) -> jax.Array:
    """What a ControlNet adds to the inputs of the base model's blocks: [depth, B, N, D], `PixArt`'s `block_residuals`.

    Args:
      controlnet: its `base` is the model.
      base_params, params: parameters of the model, and of the ControlNet.
      tokens, t, positions, conditions: as in `PixArt`.
      control: f32[B, N, p·p·C], the control picture's tokens, at the positions and in the order of `tokens`.
    """
    base = controlnet.base
    bound = base.bind({"params": base_params})
    cond = bound.embed_conditions(t, **conditions)
    # The copies start from block 0's output, so this block runs twice: one in 28, and the model stays one scan.
    block = Block(**base.block_fields(base.segments()[0][2]))
    first = {"params": jax.tree.map(lambda stack: stack[0], base_params["blocks_0"])}
    x, _ = block.apply(first, bound.embed_tokens(tokens, positions), None, cond)
    return cast(jax.Array, controlnet.apply({"params": params}, bound.embed_tokens(control, positions), x, cond))


def apply_with_control(
    controlnet: ControlNet, base_params, variables, tokens, t, *, control, positions, **conditions
) -> ModelOutput:
    """The base model under control.

    `functools.partial(apply_with_control, controlnet, base_params)` is called as `PixArt.apply` is, with the
    ControlNet's variables and one more condition, `control`. A loss given it differentiates the ControlNet alone, so
    the base model is frozen without a mask. Make the partial inside `jit`, or `base_params` become constants there.

    Args:
      variables: {"params": parameters of the ControlNet}.
      controlnet, base_params, tokens, t, control, positions, conditions: as in `control_residuals`.
    """
    conditions["positions"] = positions
    residuals = control_residuals(
        controlnet, base_params, variables["params"], tokens, t, control=control, **conditions
    )
    output = controlnet.base.apply({"params": base_params}, tokens, t, block_residuals=residuals, **conditions)
    return cast(ModelOutput, output)  # Flax's type is that of calls that also return variables.
