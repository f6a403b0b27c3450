"""Where along the way from picture to noise a model is trained: the density of timesteps."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pixart_jax.diffusion.flow import FLOW_STEPS, shifted

DENSITIES = ("uniform", "logit_normal")


@dataclasses.dataclass(frozen=True)
class Timesteps:
    """How much noise there is in training.

    Attributes:
      density: one of DENSITIES, of the share u of the way in (0, 1). "logit_normal" is the sigmoid of a normal: the
        middle is trained more than both ends (Esser et al. 2024, arXiv:2403.03206, eq. 19).
      mean, std: of that normal.
      shift: u → s·u/(1 + (s - 1)·u), for more noise at higher resolutions (eq. 23); 1 is none.
    """

    density: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def draw(self, keys, num_steps: int, *, continuous: bool):
        """A timestep for each key [B]: i32[B] below `num_steps`, or continuous f32[B] in [0, 1000]."""
        if not continuous and self == Timesteps():
            return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys)
        if self.density == "uniform":
            share = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
        else:
            share = jax.nn.sigmoid(self.mean + self.std * jax.vmap(lambda key: jax.random.normal(key, ()))(keys))
        share = shifted(share, self.shift)
        if continuous:
            return FLOW_STEPS * share
        return jnp.minimum((num_steps * share).astype(jnp.int32), num_steps - 1)


UNIFORM = Timesteps()
