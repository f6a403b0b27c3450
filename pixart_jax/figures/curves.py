"""Curves for people: losses over steps, and errors by noise level."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.figures.images import write_picture

# Points of which each is marked.
_FEW = 20


def loss_curve_png(
    path: str | os.PathLike,
    steps: Sequence[int],
    panels: Sequence[Mapping[str, Sequence[float]]],
    smoothing: float = 0.0,
) -> None:
    """Draws losses against training steps, in panels one above the other, each with a scale of its own.

    What is drawn is the mean of the steps before each point, over the faint points themselves. Points are means too, of
    as many steps as lie between them, and count for as many: a run that stopped, went on or ended between two of them
    has points of few steps, which are noisier than the others, and no news.

    Args:
      path: PNG file to write, atomically.
      steps: n step numbers, rising.
      panels: of each panel n losses for each name; the names make the legend.
      smoothing: share of all steps that the mean is over; 0 draws the points alone.

    Raises:
      InputError: no points, or a curve whose length is not that of `steps`.
    """
    lengths = {name: len(values) for panel in panels for name, values in panel.items()}
    sound = len(steps) and all(panels) and panels and all(length == len(steps) for length in lengths.values())
    if not sound or not 0 <= smoothing <= 1:
        raise InputError(
            f"loss_curve_png needs steps, as many losses as steps and smoothing from 0 to 1; got {len(steps)} steps, "
            f"losses {lengths}, smoothing {smoothing}"
        )
    all_axes = _loss_axes(len(panels))
    colours = (f"C{number}" for number in range(len(lengths)))
    # A point alone makes no line.
    style = {"marker": "." if len(steps) < _FEW else "", "linewidth": 1.5}
    for axes, panel in zip(all_axes, panels, strict=True):
        for (name, values), colour in zip(panel.items(), colours, strict=False):
            mean = trailing_mean(steps, values, smoothing * (steps[-1] - steps[0]))
            if smoothing:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, mean, color=colour, label=name, **style)
        axes.legend()
        axes.set_ylabel("loss" if "loss" in panel else next(iter(panel)))
    _write_losses(path, all_axes)


def noise_levels_png(
    path: str | os.PathLike, steps: Sequence[int], losses_by_timestep: Mapping[int, Sequence[float]]
) -> None:
    """Draws a loss against training steps, a curve per timestep and, dashed, their mean.

    Args:
      path: PNG file to write, atomically.
      steps: n step numbers.
      losses_by_timestep: n losses for each model timestep, of which there are 1000.

    Raises:
      InputError: no points.
    """
    if not len(steps) or not losses_by_timestep:
        raise InputError(f"noise_levels_png needs at least one step and one timestep; got {len(steps)} steps")
    from matplotlib import colormaps

    (axes,) = _loss_axes()
    # A point alone makes no line.
    style = {"marker": ".", "linewidth": 1.5}
    for timestep, values in losses_by_timestep.items():
        # The yellow end of the map is hard to see on white.
        axes.plot(steps, values, color=colormaps["viridis"](0.9 * timestep / 1000), label=f"t = {timestep}", **style)
    if len(losses_by_timestep) > 1:
        axes.plot(steps, np.mean([*losses_by_timestep.values()], axis=0), "k--", label="mean", **style)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _write_losses(path, [axes])


def _loss_axes(panels: int = 1):
    """Axes one above the other, which share the steps."""
    # Importing matplotlib takes about a second, which only those who draw should wait. Figure without pyplot keeps no
    # global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5 if panels == 1 else 3 * panels), dpi=100, layout="constrained")
    all_axes = figure.subplots(panels, sharex=True, squeeze=False, height_ratios=[2, *[1] * (panels - 1)])[:, 0]
    all_axes[-1].set_xlabel("step")
    for axes in all_axes:
        axes.set_ylabel("loss")
    return all_axes


def _write_losses(path: str | os.PathLike, all_axes) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axes in all_axes:
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        # Within less than a power of ten a logarithmic axis has next to no numbers.
        if values.min() > 0 and values.max() >= 10 * values.min():
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    write_picture(path, FigureCanvasAgg(all_axes[0].figure).print_png)


def trailing_mean(steps: Sequence[int], values: Sequence[float], width: float) -> np.ndarray:
    """Mean over the steps up to each point and less than `width` before it: f64[n].

    A value is the mean of the steps since the one before it, and counts for as many; of the first nobody knows how
    many, and it counts like the second.
    """
    at = np.asarray(steps, np.float64)
    counts = np.diff(at, prepend=at[0])
    counts[0] = counts[1] if len(counts) > 1 else 1
    first = np.minimum(np.searchsorted(at, at - width, side="right"), np.arange(len(at)))
    sums, weights = (np.concatenate([[0.0], np.cumsum(part)]) for part in (counts * np.asarray(values), counts))
    end = np.arange(1, len(steps) + 1)
    return (sums[end] - sums[first]) / (weights[end] - weights[first])
