"""Training of every parameter beside a small network that says how uncertain the loss is at a noise level.

Source: EDM2 (Karras et al. 2023, arXiv:2312.02696), whose u(σ) is a linear layer of Fourier features of ln(σ)/4; here
it begins at 0, where EDM2 keeps the length of its weights fixed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from pixart_jax.samplers.steps import Apply

# Where in the trained half it lies, beside the model's own parameters: no module has the name.
UNCERTAINTY = "uncertainty"
_FEATURES = 128
# Levels beyond, of which rectified flow has some at either end, count as these.
_LARGEST = 3.0


def _waves() -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and phases, f32[_FEATURES]: random, and always the same."""
    rng = np.random.default_rng(0)
    waves = 2 * np.pi * rng.standard_normal(_FEATURES), 2 * np.pi * rng.random(_FEATURES)
    return waves[0].astype(np.float32), waves[1].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """The `Adapter` of such a run. The model alone draws, is averaged and is exported.

    Attributes:
      model: called with its parameters.
    """

    model: Apply

    def split(self, base, key):
        return {**base, UNCERTAINTY: {"kernel": jnp.zeros((_FEATURES, 1), jnp.float32)}}, {}

    def drawn(self, trained):
        return {name: part for name, part in trained.items() if name != UNCERTAINTY}

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(self.drawn(trained), tokens, t, **conditions)

    def uncertainty(self, trained, alpha, sigma):
        """u of noise levels, x_t = alpha·x_0 + sigma·noise: f32[B] of f32[B]."""
        frequencies, phases = _waves()
        log = jnp.log(jnp.maximum(sigma, 1e-9)) - jnp.log(jnp.maximum(alpha, 1e-9))
        level = jnp.clip(log / 4, -_LARGEST, _LARGEST)
        features = np.sqrt(2) * jnp.cos(level[:, None] * frequencies + phases)
        return (features @ trained[UNCERTAINTY]["kernel"])[:, 0] / np.sqrt(_FEATURES)

    def rules(self):
        return ()
