"""Training of a ControlNet: copies of the first blocks learn, the model is only held."""

from __future__ import annotations

import dataclasses

import jax

from pixart_jax.models.controlnet import ControlNet, control_residuals, copy_blocks
from pixart_jax.models.layers import Dtype
from pixart_jax.samplers.steps import Apply


@dataclasses.dataclass(frozen=True)
class Controlled:
    """The `Adapter` of a model under control, whose batches have one more condition: `control` f32[B, N, p·p·C], the
    tokens of the control picture, at the positions and in the order of `tokens`.

    The trained half is the ControlNet's parameters; the frozen half the model's, its kernels in the dtype that matrix
    products convert them to anyway.

    Attributes:
      controlnet: its `base` is the model.
      model: the same as it is called with its parameters, or what has been made of that.
      dtype: of the frozen kernels.
    """

    controlnet: ControlNet
    model: Apply
    dtype: Dtype

    def split(self, base, key):
        def frozen(path, leaf):
            return leaf.astype(self.dtype) if path[-1].key == "kernel" else leaf

        return copy_blocks(base, self.controlnet.num_copies), jax.tree_util.tree_map_with_path(frozen, base)

    def drawn(self, trained):
        return trained

    def apply(self, trained, frozen, tokens, t, **conditions):
        control = conditions.pop("control")
        residuals = control_residuals(self.controlnet, frozen, trained, tokens, t, control=control, **conditions)
        return self.model(frozen, tokens, t, block_residuals=residuals, **conditions)

    def rules(self):
        return ()
