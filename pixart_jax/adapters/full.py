"""Training of every parameter: nothing is added, nothing is only held."""

from __future__ import annotations

import dataclasses

from pixart_jax.samplers.steps import Apply


@dataclasses.dataclass(frozen=True)
class Full:
    """The `Adapter` of ordinary runs, whose trained half is the model's own parameters.

    Attributes:
      model: called with the parameters.
    """

    model: Apply

    def split(self, base, key):
        return base, {}

    def drawn(self, trained):
        return trained

    def apply(self, trained, frozen, tokens, t, **conditions):
        return self.model(trained, tokens, t, **conditions)

    def rules(self):
        return ()
