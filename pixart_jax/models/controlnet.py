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
          ValueError: num_copies does not fit the base model.
        """
        base = self.base
        length, ratio = base.segments()[0][1:]
        if not 1 <= self.num_copies <= min(length, base.depth - 1):
            raise ValueError(
                f"num_copies={self.num_copies}: must be at least 1, below the base model's depth of {base.depth}, and "
                f"within its first {length} blocks, which share one kv_compress ratio"
            )
        x = x + nn.Dense(base.hidden_size, kernel_init=zeros, dtype=base.dtype, name="before_proj")(control)
        _, residuals = nn.scan(
            rematerialized(ControlBlock, base.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_copies,
            unroll=min(base.scan_unroll, self.num_copies),
        )(**base.block_fields(ratio), name="copies")(x, None, cond)
        return jnp.pad(residuals, ((1, base.depth - 1 - self.num_copies), (0, 0), (0, 0), (0, 0)))


def copy_blocks(base_params, num_copies: int = 13) -> dict:
    """The parameters with which a ControlNet starts: the base model's first blocks, and projections of zero.

    With them the base model's output is unchanged.
    """
    copies = jax.tree.map(lambda stack: stack[:num_copies], dict(base_params["blocks_0"]))
    size = base_params["x_embedder"]["bias"].shape[0]
    projection = {"kernel": jnp.zeros((size, size)), "bias": jnp.zeros(size)}
    stacked = jax.tree.map(lambda array: jnp.zeros((num_copies, *array.shape)), projection)
    return {"before_proj": projection, "copies": copies | {"after_proj": stacked}}


def apply_with_control(
    controlnet: ControlNet, base_params, variables, tokens, t, *, control, positions, **conditions
) -> ModelOutput:
    """The base model under control.

    `functools.partial(apply_with_control, controlnet, base_params)` is called as `PixArt.apply` is, with the
    ControlNet's variables and one more condition, `control`. A loss given it differentiates the ControlNet alone, so
    the base model is frozen without a mask. Make the partial inside `jit`, or `base_params` become constants there.

    Args:
      controlnet: its `base` is the model.
      base_params: parameters of the model.
      variables: {"params": parameters of the ControlNet}.
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
    residuals = controlnet.apply(variables, bound.embed_tokens(control, positions), x, cond)
    output = base.apply(
        {"params": base_params}, tokens, t, positions=positions, block_residuals=residuals, **conditions
    )
    return cast(ModelOutput, output)  # Flax's type is that of calls that also return variables.
