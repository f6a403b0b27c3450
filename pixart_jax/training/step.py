"""One optimizer step: loss, gradient (accumulated), update and EMA, to be compiled once with donated state."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from pixart_jax.adapters.adapter import Params
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.devices.offload import to_device, to_memory_of
from pixart_jax.objectives.objective import Batch, Gradients, Held, Metrics
from pixart_jax.rng import stream_key

# (state, frozen half, batch) -> (state, metrics)
TrainStep = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Gradients,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    accumulation_steps: int = 1,
    learning_rate: optax.Schedule | None = None,
) -> TrainStep:
    """Builds (state, frozen, batch) -> (state, metrics); metrics are f32[]: the objective's own, grad_norm before
    clipping, learning_rate.

    The frozen half is an argument like the batch: not donated, not saved, no constant of the program.

    Every draw comes from the seed's "train" stream folded with the step and split over the samples, so a step depends
    on nothing but the state and its batch.

    Args:
      objective: see `objectives.objective`.
      accumulation_steps: the batch is cut into this many microbatches, whose gradients are averaged in float32.
      learning_rate: reported beside the metrics when given.
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
        grads, metrics = gradients(state.params, Held(frozen, state.ema_params), batch, keys)
        updates, opt_state = tx.update(grads, to_device(state.opt_state), state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = jax.tree.map(lambda ema, p: ema + (1.0 - ema_decay) * (p - ema), state.ema_params, params)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        return TrainState(state.step + 1, params, ema_params, to_memory_of(opt_state, state.opt_state)), metrics

    return train_step
