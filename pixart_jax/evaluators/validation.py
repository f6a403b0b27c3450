"""The loss on held-out pictures, at fixed timesteps with fixed noise: what a run has learnt, step by step.

The training loss is too noisy to compare runs by: each step draws other pictures, timesteps and noise. Here all of them
are always the same, and the error is kept apart by timestep, because each resolution's loss has its own level there.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pixart_jax.data.examples import BatchSpec, make_example
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import SampleSource
from pixart_jax.devices.sharding import put_batch, replicated
from pixart_jax.diffusion import gaussian
from pixart_jax.diffusion.schedule import DiffusionSchedule
from pixart_jax.evaluators.evaluator import Report, Row
from pixart_jax.figures.curves import noise_levels_png
from pixart_jax.objectives.denoising import diffusion_terms
from pixart_jax.objectives.objective import Batch
from pixart_jax.rng import stream_key
from pixart_jax.samplers.steps import Apply

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

    def __init__(self, sources: Sequence[tuple[SampleSource, Manifest]], spec: BatchSpec, count: int):
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


def make_eval_step(apply: Apply, schedule: DiffusionSchedule, timesteps: Sequence[int], *, seed: int) -> EvalStep:
    """Per-sample terms of the loss at each of `timesteps`, as `objectives.denoising.diffusion_terms` has them.

    The error is that of eps whatever the run's loss is. A sample's noise depends on the seed, the timestep, its
    number (`index`) and the place of a token in the sequence: not on the batch, the devices or the padding.

    Args:
      apply: the model.
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
            output = apply(params, x_t, t, **conditions)
            return diffusion_terms(schedule, output, x0, x_t, t, noise, batch["num_tokens"])

        return batch["index"], jax.lax.map(terms_at, jnp.asarray(timesteps, jnp.int32))

    return evaluate


@dataclasses.dataclass(frozen=True)
class Validation:
    """The evaluation of held-out pictures, before the first step, every `every` steps and after the last.

    Its program, which is compiled when it looks for the first time, is a collective one: every process must have it and
    call it at the same steps.

    Attributes:
      held_out: the pictures.
      eval_step: see `make_eval_step`.
      timesteps: those of `eval_step`.
      every: steps.
      mesh: devices that a batch is spread over.
      batch_size: pictures at a time over all processes; a multiple of the devices. It changes no result beyond
        rounding.
      process_index, process_count: this process among those that evaluate together.
    """

    held_out: HeldOut
    eval_step: EvalStep
    timesteps: Sequence[int]
    every: int
    mesh: Mesh
    batch_size: int
    process_index: int = 0
    process_count: int = 1
    name: str = "eval"

    def due(self, step, last):
        return step == last or step % self.every == 0

    def __call__(self, weights, beat):
        """Reports `eval_mse/t050` and so on, the mean squared error of eps per real token and channel, averaged over
        the pictures, at each timestep; `eval_loss`, their mean; and, where the variance is learned, `eval_vb`, the
        bound's terms in bits, averaged over pictures and timesteps."""
        outputs = []
        for share in self._shares:
            beat()
            batch = self._batch(share)
            outputs.append(self._program(weights, batch))
            # One batch is read while the devices work on another; more would pile up in their memory.
            jax.block_until_ready(outputs[-2:-1])
        scalars = self._scalars(jax.device_get(outputs))
        return Report(f"evaluation loss {scalars['eval_loss']:.5f}", scalars, draw=self.draw)

    def _scalars(self, outputs) -> dict[str, float]:
        means = {}
        for name in outputs[0][1]:
            terms = np.empty((len(self.timesteps), len(self.held_out.indices)))
            for index, found in outputs:
                terms[:, np.searchsorted(self.held_out.indices, index)] = found[name]
            means[name] = terms.mean(axis=1)
        by_timestep = {mse_name(t): float(value) for t, value in zip(self.timesteps, means["mse"], strict=True)}
        return {_MEANS[name]: float(value.mean()) for name, value in means.items()} | by_timestep

    def draw(self, path: pathlib.Path, rows: Sequence[Row]) -> None:
        """A curve for each noise level, of every evaluation that had these timesteps."""
        rows = [row for row in rows if all(mse_name(t) in row for t in self.timesteps)]
        curves = {t: [row[mse_name(t)] for row in rows] for t in self.timesteps}
        noise_levels_png(path, [row["step"] for row in rows], curves)

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """This process's share of each batch, as numbers of pictures."""
        indices, size = self.held_out.indices, self.batch_size
        # The last batch is filled up with the last picture; each number's result counts once, in `_scalars`.
        padded = np.minimum(np.arange(-(-len(indices) // size) * size), len(indices) - 1)
        return indices[padded].reshape(-1, self.process_count, size // self.process_count)[:, self.process_index]

    @functools.cached_property
    def _program(self) -> Callable:
        # Small results, and then on every process, wherever the mesh put the rows.
        return jax.jit(self.eval_step, out_shardings=replicated(self.mesh))

    def _batch(self, indices) -> dict[str, jax.Array]:
        return put_batch(self.held_out.batch(indices), self.mesh)


def mse_name(timestep: int) -> str:
    """The metric of one noise level."""
    return f"eval_mse/t{timestep:03d}"
