"""Training of every parameter beside a projector, through which the tokens of one block are compared with a target.

Source: REPA (Yu et al. 2024, arXiv:2410.06940) §3.2 and its code: three linear layers with SiLU between them, of the
tokens that an early block leaves.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pixart_jax.models.layers import Dtype, xavier
from pixart_jax.models.routing import Tapped
from pixart_jax.samplers.steps import Apply

# Where in the trained half it lies, beside the model's own parameters: no module has the name.
PROJECTOR = "projector"
# Of a batch: the targets of its tokens [B, N, F], which no model takes.
TARGETS = "align"


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The `Adapter` of such a run. The model alone draws, is averaged and is exported: its parameters lie as those of
    one that is trained by itself.

    Attributes:
      model: called with its parameters.
      looked_at: likewise; gives its prediction and what the block leaves, see `routing.forward`.
      widths: of the projector: the model's, that of what lies between, the target's.
      dtype: of the projector's matrix products.
    """

    model: Apply
    looked_at: Callable[..., tuple[Any, Tapped | None]]
    widths: tuple[int, int, int]
    dtype: Dtype

    def split(self, base, key):
        model, inner, target = self.widths
        layers = {}
        for number, (inputs, outputs) in enumerate(itertools.pairwise((model, inner, inner, target))):
            kernel = xavier(jax.random.fold_in(key, number), (inputs, outputs), jnp.float32)
            layers[f"dense_{number}"] = {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}
        return {**base, PROJECTOR: layers}, {}

    def drawn(self, trained):
        return {name: part for name, part in trained.items() if name != PROJECTOR}

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(self.drawn(trained), tokens, t, **_without_targets(conditions))

    def look(self, trained, tokens, t, **conditions):
        """The model's (eps, v), and what the block leaves."""
        output, tapped = self.looked_at(self.drawn(trained), tokens, t, **_without_targets(conditions))
        assert tapped is not None  # The block is one of the model's: `check_config` has seen to it.
        return output, tapped

    def project(self, trained, features):
        """[B, K, D] of the model to f32[B, K, F] of the target."""
        layers = trained[PROJECTOR]
        x = features.astype(self.dtype)
        for number in range(len(layers)):
            x = jax.nn.silu(x) if number else x
            layer = layers[f"dense_{number}"]
            x = x @ layer["kernel"].astype(self.dtype) + layer["bias"].astype(self.dtype)
        return x.astype(jnp.float32)

    def rules(self):
        return ()


def _without_targets(conditions):
    return {name: value for name, value in conditions.items() if name != TARGETS}
