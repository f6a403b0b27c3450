"""The pictures that evaluators look at: captions of the training data, or prompts, drawn once for all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from pixart_jax.data.examples import BatchSpec, make_example, stack_examples
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import SampleSource
from pixart_jax.devices.sharding import batch_sharding, fetch_whole, put_whole
from pixart_jax.figures.images import enlarged, labelled_grid, to_uint8
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import SampleFn, sample_in_batches
from pixart_jax.tokens import tokens_to_latents

# Some samples' numbers, and their pictures f32[H, W, 3].
Part = tuple[list[int], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Share:
    """Which of the pictures a process looks at: of every `count` in a row that of this index."""

    index: int
    count: int


class _Kept:
    """Pictures by sample, of the weights that were looked at last."""

    def __init__(self) -> None:
        self._weights: object = None
        self._pictures: dict[int, np.ndarray] = {}

    def of(self, weights: object) -> dict[int, np.ndarray]:
        if weights is not self._weights:
            self._weights, self._pictures = weights, {}
        return self._pictures


@dataclasses.dataclass(frozen=True)
class Drawings:
    """Draws captions of one data set with a compiled sampling program, `batch_size` at a time.

    What one evaluator has drawn is kept for the others, as long as the weights are the same object.

    Attributes:
      samples: the data set, or some of it; read when they are drawn.
      manifest: of the samples.
      decode: unscaled latents f32[1, h, w, C] to pictures f32[1, H, W, 3] in about [-1, 1].
      spec: the shapes of a batch.
      sample_fn: see `samplers.program.make_sample_fn`.
      guidance_scale, seed: of every picture drawn here.
      batch_size: pictures drawn at a time, rounded up to the number of devices.
      mesh: devices that they are spread over. Drawing is a collective operation of all its processes.
      has_pictures: False for prompts, which have none to show beside what is generated.
    """

    samples: SampleSource
    manifest: Manifest
    decode: Callable[[np.ndarray], np.ndarray]
    spec: BatchSpec
    sample_fn: SampleFn
    guidance_scale: float
    seed: int
    batch_size: int
    mesh: Mesh
    has_pictures: bool = True
    _kept: _Kept = dataclasses.field(default_factory=_Kept, init=False)

    def grid(self, weights, count: int, beat: Callable[[], None] = lambda: None) -> np.ndarray:
        """uint8[H, W, 3]: up to `count` captions spread over the samples, each with its generated picture, and
        its real one on the left if it has one."""
        indices = self.spread(count)
        generated = self.draw(weights, indices, beat)
        shown = [self.real(indices), generated] if self.has_pictures else [generated]
        captions = [self.samples[int(i)].caption for i in indices]
        entries = [[enlarged(to_uint8(picture)) for picture in entry] for entry in zip(*shown, strict=True)]
        columns = max(1, round(len(entries) ** 0.5))
        heading = "real | drawn" if self.has_pictures else ""
        return labelled_grid(list(zip(entries, captions, strict=True)), columns=columns, heading=heading)

    def spread(self, count: int) -> np.ndarray:
        """i[n]: the places of up to `count` samples, spread evenly."""
        return np.unique(np.linspace(0, len(self.samples) - 1, count).astype(int))

    def real(self, indices: Iterable[int]) -> list[np.ndarray]:
        """The pictures of samples themselves, f32[H, W, 3] each."""
        return self._decode(self.samples[int(i)].latent_mean.astype(np.float32) for i in indices)

    def draw(self, weights, indices: Iterable[int], beat: Callable[[], None] = lambda: None) -> list[np.ndarray]:
        """A picture of each sample's caption, f32[H, W, 3]."""
        pictures = self._kept.of(weights)
        missing = [int(i) for i in indices if int(i) not in pictures]
        if missing:
            pictures |= dict(zip(missing, self._draw(weights, missing, beat), strict=True))
        return [pictures[int(i)] for i in indices]

    def stream_real(self, indices: Iterable[int], share: Share) -> Iterator[Part]:
        """This process's share of the samples' pictures, some at a time."""
        mine = [int(i) for i in indices][share.index :: share.count]
        for start in range(0, len(mine), self._at_a_time):
            part = mine[start : start + self._at_a_time]
            yield part, self.real(part)

    def stream(
        self, weights, indices: Iterable[int], share: Share, beat: Callable[[], None] = lambda: None
    ) -> Iterator[Part]:
        """This process's share of what `draw` gives, some at a time; of it nothing is kept that was not kept before.

        Every process takes part in drawing all of them: all must iterate to the end.
        """
        kept, numbers = self._kept.of(weights), [int(i) for i in indices]
        known, missing = ([i for i in numbers if (i in kept) is there] for there in (True, False))
        if mine := known[share.index :: share.count]:
            yield mine, [kept[i] for i in mine]
        for start in range(0, len(missing), self._at_a_time):
            part = missing[start : start + self._at_a_time]
            latents = self._latents(weights, part, beat)
            rows = slice((share.index - len(known) - start) % share.count, None, share.count)
            yield part[rows], self._decode(latents[rows])

    @property
    def _at_a_time(self) -> int:
        """A multiple of the devices."""
        return -(-self.batch_size // self.mesh.size) * self.mesh.size

    def _draw(self, weights, indices: Sequence[int], beat: Callable[[], None]) -> list[np.ndarray]:
        return self._decode(self._latents(weights, indices, beat))

    def _latents(self, weights, indices: Sequence[int], beat: Callable[[], None]) -> list[np.ndarray]:
        samples = [self.samples[i] for i in indices]
        conditions = stack_examples([make_example(sample, self.manifest, self.spec) for sample in samples])
        tokens = sample_in_batches(
            self.sample_fn,
            weights,
            conditions,
            null_branch(conditions),
            token_dim=self.spec.patch_size**2 * self.spec.latent_channels,
            seed=self.seed,
            indices=np.asarray(indices),  # Places in the data set, so that a picture is the same in any selection.
            guidance_scale=self.guidance_scale,
            batch_size=self._at_a_time,
            place=functools.partial(put_whole, sharding=batch_sharding(self.mesh)),
            fetch=fetch_whole,
            progress=lambda done: beat(),
        )
        return [
            tokens_to_latents(
                row,
                (
                    sample.latent_mean.shape[0] // self.spec.patch_size,
                    sample.latent_mean.shape[1] // self.spec.patch_size,
                ),
                self.spec.patch_size,
                self.manifest.latent_scale,
                self.spec.block_ratio,
            )
            for row, sample in zip(tokens, samples, strict=True)
        ]

    def _decode(self, latents: Iterable[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(self.decode(latent[None]))[0] for latent in latents]


def same_size(pictures) -> list[np.ndarray]:
    """Pictures of several aspect ratios centred on white tiles of one size."""
    pictures = list(pictures)
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    tiles = []
    for picture in pictures:
        tile = np.full((height, width, 3), 255, np.uint8)
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        tile[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        tiles.append(tile)
    return tiles
