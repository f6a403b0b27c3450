"""What a config computes on a mesh: its parts, the shapes of all they carry, and the training step to be compiled.

The loop, the benchmarks, the TPU compiler's tool and the cost of a recipe all take it from here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from pixart_jax.adapters.adapter import Adapter, Apply, Params, bind
from pixart_jax.checkpoints.state import Birth, TrainState
from pixart_jax.config import ConfigDict, build_adapter, build_model, build_objective, build_tx, optimizer_spec
from pixart_jax.models.pixart import PixArt
from pixart_jax.objectives.distribution_matching import Distance
from pixart_jax.objectives.objective import Gradients
from pixart_jax.optimizers import learning_rate_schedule
from pixart_jax.training.flops import gradient_flops
from pixart_jax.training.step import TrainStep, make_train_step

# name -> shape, dtype and sharding of the global batch's array.
BatchShapes = Mapping[str, jax.ShapeDtypeStruct]


class HeldDistance(NamedTuple):
    """A distance that networks measure.

    Attributes:
      measure: of tokens, see `Distance`.
      weights: of the networks, arrays on the mesh by name: it finds them in the frozen half.
    """

    measure: Distance
    weights: dict[str, Params]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What of a run may be another: each makes its part as the config says, unless it is replaced.

    Attributes:
      distance: of the pictures of pairs, where the config wants it; the objective then takes it as a third argument.
    """

    adapter: Callable[[ConfigDict, PixArt], Adapter] = build_adapter
    objective: Callable[..., Gradients] = build_objective
    optimizer: Callable[[ConfigDict, Mesh | None], optax.GradientTransformation] = build_tx
    distance: HeldDistance | None = None

    @property
    def weights(self) -> dict[str, Params]:
        """What the frozen half holds beside the adapter's."""
        return self.distance.weights if self.distance else {}

    def gradients(self, config: ConfigDict, adapter: Adapter) -> Gradients:
        """The objective."""
        return self.objective(config, adapter, *((self.distance.measure,) if self.distance else ()))


FROM_CONFIG = Parts()


@dataclasses.dataclass(frozen=True)
class Program:
    """One config on one mesh. Nothing is allocated or compiled before it is asked for.

    Attributes:
      config: `memory.settle` settles how the model is computed; undecided it is one block at a time, all kept.
      mesh: None where only FLOPs are wanted.
    """

    config: ConfigDict
    mesh: Mesh | None
    parts: Parts = FROM_CONFIG

    @functools.cached_property
    def model(self) -> PixArt:
        return build_model(self.config, self.mesh)

    @functools.cached_property
    def adapter(self) -> Adapter:
        return self.parts.adapter(self.config, self.model)

    @property
    def apply(self) -> Apply:
        """The adapted model, called with `Parameters`."""
        return bind(self.adapter)

    @functools.cached_property
    def birth(self) -> Birth:
        """How its state comes to be."""
        config, tx = self.config, self.parts.optimizer(self.config, self.mesh)
        if self.mesh is None:
            raise ValueError("a program without a mesh has no state: only its FLOPs can be counted")
        offload = config.train.offload_optimizer
        return Birth(self.model, self.adapter, tx, self.mesh, config.seed, offload, self.parts.weights)

    @property
    def state(self) -> TrainState:
        """Shapes, dtypes and shardings."""
        return self.birth.shapes[0]

    @property
    def frozen(self) -> Params:
        """Likewise."""
        return self.birth.shapes[1]

    @property
    def step(self) -> TrainStep:
        return self._step(self.config.train.ema_warmup)

    def _step(self, ema_warmup: bool) -> TrainStep:
        return make_train_step(
            self.parts.gradients(self.config, self.adapter),
            self.birth.tx,
            seed=self.config.seed,
            ema_decay=self.config.train.ema_decay,
            ema_warmup=ema_warmup,
            accumulation_steps=self.config.train.accumulation_steps,
            learning_rate=learning_rate_schedule(optimizer_spec(self.config)),
            drawn=self.adapter.drawn,
        )

    def lower(self, batch: BatchShapes, *, ema_warmup: bool | None = None) -> jax.stages.Lowered:
        """(state, frozen, batch) -> (state, metrics), with the state donated.

        Args:
          ema_warmup: in place of the config's, of a run that began with another.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        warmup = self.config.train.ema_warmup if ema_warmup is None else ema_warmup
        step = jax.jit(self._step(warmup), donate_argnums=0, out_shardings=(shardings, None))
        return step.lower(self.state, self.frozen, dict(batch))

    def flops(self, batch: Mapping) -> float | None:
        """Of the gradient for a global batch, see `flops.gradient_flops`."""

        def parts_of(model):
            adapter = self.parts.adapter(self.config, model)
            return adapter, self.parts.gradients(self.config, adapter)

        return gradient_flops(self.model, parts_of, batch, self.parts.weights)
