"""One optimizer step: loss, gradient (accumulated), update and EMA, to be compiled once with donated state."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pixart_jax.adapters.adapter import Params
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.devices.offload import to_device, to_memory_of
from pixart_jax.objectives.objective import Batch, Gradients, Held, Metrics
from pixart_jax.optimizers.schedule_free import settled
from pixart_jax.rng import stream_key

# (state, frozen half, batch) -> (state, metrics)
TrainStep = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Gradients,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    ema_warmup: bool = False,
    accumulation_steps: int = 1,
    learning_rate: optax.Schedule | None = None,
    drawn: Callable[[Params], Params] = lambda trained: trained,
) -> TrainStep:
    """Builds (state, frozen, batch) -> (state, metrics); metrics are f32[]: the objective's own, grad_norm before
    clipping, learning_rate.

    The frozen half is an argument like the batch: not donated, not saved, no constant of the program.

    Every draw comes from the seed's "train" stream folded with the step and split over the samples, so a step depends
    on nothing but the state and its batch.

    Args:
      objective: see `objectives.objective`.
      ema_decay: of the averaged parameters.
      ema_warmup: it begins lower, see `ema_rate`.
      accumulation_steps: the batch is cut into this many microbatches, whose gradients are averaged in float32.
      learning_rate: reported beside the metrics when given.
      drawn: `Adapter.drawn`: what of the parameters is averaged.
    """

    def gradients(params, held, batch, keys):
        if accumulation_steps == 1:
            return objective(params, held, batch, keys)

        def microbatches(x):
            # Rows k, k + K, k + 2K, ... form microbatch k, so that each device keeps the rows it already holds.
            return x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1)

        def add(total, micro):
            return jax.tree.map(jnp.add, total, objective(params, held, *micro)), None

        micro = jax.tree.map(microbatches, (batch, keys))
        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(lambda p, h, m: objective(p, h, *m), params, held, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, micro)
        return jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(stream_key(seed, "train"), state.step)
        keys = jax.random.split(key, batch["tokens"].shape[0])
        grads, metrics = gradients(state.params, Held(frozen, state.ema_params, state.step), batch, keys)
        updates, opt_state = tx.update(grads, to_device(state.opt_state), state.params)
        params = optax.apply_updates(state.params, updates)
        rate = ema_rate(ema_decay, ema_warmup, state.step)
        evaluated = drawn(settled(opt_state, params))
        ema_params = jax.tree.map(lambda ema, p: ema + rate * (p - ema), state.ema_params, evaluated)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        return TrainState(state.step + 1, params, ema_params, to_memory_of(opt_state, state.opt_state)), metrics

    return train_step


def ema_rate(decay: float, warmup: bool, step: jax.Array) -> jax.Array | float:
    """The share of the way to the parameters that their average goes in a step.

    With a warm-up it is 1 - min(decay, (1 + step) / (10 + step)), the usual rule (`num_updates` of TensorFlow's
    ExponentialMovingAverage, diffusers' EMAModel): the average is over about the last ninth of the steps so far, until
    that is more than 1 / (1 - decay). Without it short runs hardly move the average, see `ema_memory`.

    Args:
      step: i32[], steps done before this one.
    """
    return jnp.maximum(1.0 - decay, 9.0 / (10.0 + step)) if warmup else 1.0 - decay


def ema_memory(decay: float, warmup: bool, num_steps: int) -> float:
    """The share of the parameters that a run starts from in their average after so many steps; see `ema_rate`."""
    steps = np.arange(num_steps)
    decays = np.minimum(decay, (1 + steps) / (10 + steps)) if warmup else np.full(num_steps, decay)
    return float(np.prod(decays))
