"""The loss on held-out pictures, at fixed timesteps with fixed noise: what a run has learnt, step by step.

The training loss is too noisy to compare runs by: each step draws other pictures, timesteps and noise. Here all of them
are always the same, and the error is kept apart by timestep, because each resolution's loss has its own level there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.data.examples import BatchSpec, make_example
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample
from pixart_jax.devices.sharding import put_batch, replicated
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.objectives.denoising import Batch, diffusion_terms
from pixart_jax.rng import stream_key

# (params, batch with `index` i32[B]) -> (index i32[B], {"mse": f32[T, B], "vb": f32[T, B] if the variance is learned})
EvalStep = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]

# Of each term's mean over all timesteps.
_MEANS = {"mse": "eval_loss", "vb": "eval_vb"}


class HeldOut:
    """A selection of the samples of some sets, as the model takes them: nothing about them is drawn.

    Latents are the posterior's means, captions those of the largest weight, and none is dropped.

    Args:
      sources: (samples, manifest) of each set; samples are counted through them.
      spec: the shapes of an example.
      count: samples to select, spread evenly; fewer if there are fewer.

    Attributes:
      indices: i64[n], the numbers of the selected, rising.
    """

    def __init__(self, sources: Sequence[tuple[Sequence[Sample], Manifest]], spec: BatchSpec, count: int):
        self._sources, self._spec = sources, spec
        self._starts = np.cumsum([0, *(len(samples) for samples, _ in sources)])
        total = self._starts[-1]
        self.indices = np.linspace(0, total - 1, min(count, total)).astype(int)

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The samples of these numbers as `data.pipeline.make_iterator`'s batches have them, and `index` i32[B]."""
        examples = [self._example(index) for index in indices]
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        return batch | {"index": np.asarray(indices, np.int32)}

    def _example(self, index: int) -> dict[str, np.ndarray]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        samples, manifest = self._sources[number]
        return make_example(samples[int(index - self._starts[number])], manifest, self._spec)


def make_eval_step(apply_fn: Callable, schedule: DiffusionSchedule, timesteps: Sequence[int], *, seed: int) -> EvalStep:
    """Per-sample terms of the loss at each of `timesteps`, as `denoising.diffusion_terms` has them.

    The error is that of eps whatever the run's loss is. A sample's noise depends on the seed, the timestep, its
    number (`index`) and the place of a token in the sequence: not on the batch, the devices or the padding.

    Args:
      apply_fn: `PixArt.apply`.
      schedule: the training process.
      timesteps: T model timesteps.
      seed: of the noise.
    """

    def evaluate(params, batch):
        x0 = batch["tokens"].astype(jnp.float32)
        conditions = {name: value for name, value in batch.items() if name not in ("tokens", "index")}
        keys = jax.vmap(lambda index: jax.random.fold_in(stream_key(seed, "eval"), index))(batch["index"])

        def terms_at(timestep):
            t = jnp.full(x0.shape[0], timestep)
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, timestep), x0.shape[1:]))(keys)
            x_t = gaussian.q_sample(schedule, x0, t, noise)
            output = apply_fn({"params": params}, x_t, t, **conditions)
            return diffusion_terms(schedule, output, x0, x_t, t, noise, batch["num_tokens"])

        return batch["index"], jax.lax.map(terms_at, jnp.asarray(timesteps, jnp.int32))

    return evaluate


class Validation:
    """The evaluation program, compiled on creation, and the pictures it runs over.

    A collective program: every process must create it and call it at the same steps.

    Args:
      held_out: the pictures.
      eval_step: see `make_eval_step`.
      timesteps: those of `eval_step`.
      params: shapes, dtypes and shardings of the parameters.
      mesh: devices that a batch is spread over.
      batch_size: pictures at a time over all processes; a multiple of the devices. It changes no result beyond
        rounding.
      process_index, process_count: this process among those that evaluate together.
    """

    def __init__(
        self,
        held_out: HeldOut,
        eval_step: EvalStep,
        timesteps: Sequence[int],
        *,
        params: Any,
        mesh: Mesh,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._held_out, self._timesteps, self._mesh = held_out, timesteps, mesh
        indices = held_out.indices
        # The last batch is filled up with the last picture; each number's result counts once, below.
        padded = np.minimum(np.arange(-(-len(indices) // batch_size) * batch_size), len(indices) - 1)
        self._shares = indices[padded].reshape(-1, process_count, batch_size // process_count)[:, process_index]
        # Small, and then on every process, wherever the mesh put the rows.
        step = jax.jit(eval_step, out_shardings=replicated(mesh))
        self._program = step.lower(params, self._batch(self._shares[0])).compile()

    def __call__(self, params, progress: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Evaluates parameters.

        Args:
          progress: called before each batch.

        Returns:
          `eval_mse/t050` and so on, the mean squared error of eps per real token and channel, averaged over the
          pictures, at each timestep; `eval_loss`, their mean; and, where the variance is learned, `eval_vb`, the
          bound's terms in bits, averaged over pictures and timesteps.
        """
        outputs = []
        for share in self._shares:
            progress()
            outputs.append(self._program(params, self._batch(share)))
            # One batch is read while the devices work on another; more would pile up in their memory.
            jax.block_until_ready(outputs[-2:-1])
        outputs = jax.device_get(outputs)
        means = {}
        for name in outputs[0][1]:
            terms = np.empty((len(self._timesteps), len(self._held_out.indices)))
            for index, found in outputs:
                terms[:, np.searchsorted(self._held_out.indices, index)] = found[name]
            means[name] = terms.mean(axis=1)
        by_timestep = {mse_name(t): float(value) for t, value in zip(self._timesteps, means["mse"], strict=True)}
        return {_MEANS[name]: float(value.mean()) for name, value in means.items()} | by_timestep

    def _batch(self, indices) -> dict[str, jax.Array]:
        return put_batch(self._held_out.batch(indices), self._mesh)


def mse_name(timestep: int) -> str:
    """The metric of one noise level."""
    return f"eval_mse/t{timestep:03d}"
