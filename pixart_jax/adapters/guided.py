"""A student that takes the guidance as an input: one call for what its teacher needs two for, at any strength.

Source: Meng et al. 2023 (arXiv:2210.03142), §3.1, and Luo et al. 2023 (arXiv:2310.04378), §4.2: w through sinusoids of
1000·w. Added to the timestep's embedding, by a matrix that begins as zeros, so that the student begins as its teacher.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixart_jax.adapters.lora import Lora
from pixart_jax.adapters.taught import Taught
from pixart_jax.devices.sharding import WHOLE
from pixart_jax.models.layers import ScalarEmbedder, sinusoid
from pixart_jax.samplers.steps import Apply

# Among what is trained: f32[256, D].
EMBEDDING = "guidance_embedding"
_TIMESTEPS = "t_embedder"
_SCALE = 1000.0


@dataclasses.dataclass(frozen=True)
class Guided:
    """The `Adapter` of such a student.

    Attributes:
      student: what else of it is trained; it knows its teacher.
      hidden_size: D, of the model.
      default: w of who names none.
    """

    student: Taught | Lora
    hidden_size: int
    default: float

    def split(self, base, key):
        trained, frozen = self.student.split(base, key)
        width = jax.eval_shape(sinusoid, jnp.zeros(())).shape[-1]
        return {**trained, EMBEDDING: {"kernel": jnp.zeros((width, self.hidden_size), jnp.float32)}}, frozen

    def drawn(self, trained):
        return trained

    def apply(self, trained, frozen, tokens, t, *, guidance=None, **conditions):
        """As `Adapter.apply`.

        Args:
          guidance: w f32[B] of cond + w·(cond - null): the guidance scale less 1.
        """
        kernel = trained[EMBEDDING]["kernel"]
        rest = {name: tree for name, tree in trained.items() if name != EMBEDDING}

        def add(call, args, kwargs, context):
            outputs, module = call(*args, **kwargs), context.module
            is_it = isinstance(module, ScalarEmbedder) and module.name == _TIMESTEPS
            if not is_it or context.method_name != "__call__":
                return outputs
            w = jnp.full(len(outputs), self.default) if guidance is None else guidance
            return outputs + (sinusoid(_SCALE * w) @ kernel).astype(outputs.dtype)

        with nn.intercept_methods(add):
            return self.student.apply(rest, frozen, tokens, t, **conditions)

    def over(self, model: Apply) -> Guided:
        """The same of another callable of the model's parameters."""
        return dataclasses.replace(self, student=dataclasses.replace(self.student, model=model))

    def teacher(self, frozen) -> Apply:
        """See `Taught.teacher`."""
        return self.student.teacher(frozen)

    def rules(self) -> Any:
        return ((rf"{EMBEDDING}/kernel$", (WHOLE, ("fsdp",))), *self.student.rules())
