"""How good the pictures are that a run draws: metrics of networks that look at them, step by step."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import jax
import numpy as np
from absl import logging

from pixart_jax.adapters.adapter import Parameters
from pixart_jax.devices.sharding import gather_rows
from pixart_jax.errors import NotFinite
from pixart_jax.evaluators.distances import Statistics, frechet_distance, kernel_distance, statistics_of
from pixart_jax.evaluators.drawings import Drawings, Part, Share
from pixart_jax.evaluators.evaluator import Report, Row
from pixart_jax.evaluators.feature_networks import frechet_name, kernel_name
from pixart_jax.evaluators.networks import FEATURES, OnDevices
from pixart_jax.figures.curves import loss_curve_png
from pixart_jax.figures.images import to_uint8

# As torch-fidelity's, where there are as many pictures.
_KERNEL_SUBSET = 1000


class Measure(Protocol):
    """What one network says of pictures.

    Attributes:
      width: of a picture's row.
    """

    @property
    def width(self) -> int: ...

    def rows(self, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        """f32[n, width] of n pictures uint8[H, W, 3], each by itself, and the captions that they were drawn for."""

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """The metrics, by name, of the rows f32[N, width] of all pictures."""


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature network's rows: they are its features."""

    network: OnDevices

    @property
    def width(self) -> int:
        return self.network.network.outputs[FEATURES]

    def rows(self, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        return self.network([self.network.network.prepare(picture) for picture in pictures])[FEATURES]


@dataclasses.dataclass(frozen=True)
class Distances(Features):
    """Distances from a reference.

    Attributes:
      reference: statistics of the reference's features.
      references: f32[M, width], the features themselves, of which the kernel distance is made; None leaves it out.
      frechet: whether the Fréchet distance is wanted.
    """

    reference: Statistics
    references: np.ndarray | None
    frechet: bool

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        network, found = self.network.network, {}
        if self.frechet:
            found[frechet_name(network)] = frechet_distance(statistics_of([rows], self.width), self.reference)
        if self.references is not None:
            subset = min(_KERNEL_SUBSET, len(rows), len(self.references))
            # Subsets that are all there is are all the same.
            subsets = 1 if subset == len(rows) == len(self.references) else 100
            found[kernel_name(network)], _ = kernel_distance(
                rows, self.references, num_subsets=subsets, subset_size=subset
            )
        return found


@dataclasses.dataclass(frozen=True)
class Quality:
    """Before the first step, every `every` steps and after the last, metrics of `count` captions' pictures.

    Every process draws, because drawing is a collective operation, and looks at its share of what is drawn; all have
    the same figures, whatever their number.
    """

    drawings: Drawings
    measures: Sequence[Measure]
    count: int
    every: int
    name: str = "quality"

    def due(self, step: int, last: int) -> bool:
        return step == last or step % self.every == 0

    def __call__(self, weights: Parameters, beat: Callable[[], None]) -> Report:
        indices = self.drawings.spread(self.count)
        pictures = self.drawings.stream(weights, indices, share_of_process(), beat)
        try:
            found = look(self.measures, self.drawings, indices, pictures)
        except NotFinite as error:  # Training may well recover from it.
            logging.error("NO METRIC OF PICTURES IS MEASURED: %s", error)
            return Report("no metrics of pictures: they are not finite")
        figures: dict[str, float] = {}
        for measure, rows in zip(self.measures, found, strict=True):
            beat()
            figures |= measure.figures(rows)
        said = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
        return Report(f"{said} of {len(indices)} pictures", figures, draw=self.draw)

    def draw(self, path: pathlib.Path, rows: Sequence[Row]) -> None:
        """A panel for each metric of the last row, of every row that has all of them."""
        names = [name for name in rows[-1] if name != "step"]
        rows = [row for row in rows if all(name in row for name in names)]
        panels = [{name: [row[name] for row in rows]} for name in names]
        loss_curve_png(path, [row["step"] for row in rows], panels)


def look(
    measures: Sequence[Measure | Features], drawings: Drawings, indices: np.ndarray, pictures: Iterable[Part]
) -> list[np.ndarray]:
    """Each measure's rows f32[N, width] of N samples, in their order, on every process.

    Args:
      drawings: of the samples.
      indices: i[N], the samples' numbers, rising.
      pictures: this process's share of them.

    Raises:
      NotFinite: a picture is not, or what is measured of it; names its caption. On every process.
    """
    mine: list[int] = []
    rows: list[list[np.ndarray]] = [[np.zeros((0, measure.width), np.float32)] for measure in measures]
    for numbers, batch in pictures:
        mine += numbers
        sound = [row for row, picture in enumerate(batch) if np.isfinite(picture).all()]
        pixels = [to_uint8(batch[row]) for row in sound]
        captions = [drawings.samples[numbers[row]].caption for row in sound]
        for measure, found in zip(measures, rows, strict=True):
            # The others wait for this process's rows: what is not finite is told to all at once, below.
            part = np.full((len(batch), measure.width), np.nan, np.float32)
            if sound:
                part[sound] = measure.rows(pixels, captions)
            found.append(part)
    order = np.argsort(gather_rows(np.array(mine, np.int32), len(indices)))
    whole = [gather_rows(np.concatenate(found), len(indices))[order] for found in rows]
    for values in whole:
        bad = [int(i) for i, row in zip(indices, values, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise NotFinite(
                f"NaN or infinity is in the picture of {drawings.samples[bad[0]].caption!r} (sample {bad[0]}) or in "
                f"what is measured of it; that is so for {len(bad)} of {len(indices)}"
            )
    return whole


def share_of_process() -> Share:
    """Of this process among all."""
    return Share(jax.process_index(), jax.process_count())
