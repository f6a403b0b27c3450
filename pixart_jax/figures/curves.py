"""Curves for people: losses over steps, and errors by noise level."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.figures.images import write_picture


def loss_curve_png(
    path: str | os.PathLike, steps: Sequence[int], losses_by_name: Mapping[str, Sequence[float]], smoothing: int = 1
) -> None:
    """Draws losses against training steps, logarithmic where all are positive.

    Args:
      path: PNG file to write, atomically.
      steps: n step numbers.
      losses_by_name: n losses for each name; the names make the legend.
      smoothing: width, in points, of the trailing mean drawn over the faint raw curve; 1 draws the raw curve alone.

    Raises:
      InputError: no points, or a curve whose length is not that of `steps`.
    """
    lengths = {name: len(values) for name, values in losses_by_name.items()}
    if not len(steps) or not lengths or any(length != len(steps) for length in lengths.values()) or smoothing < 1:
        raise InputError(
            f"loss_curve_png needs steps, as many losses as steps and smoothing >= 1; got {len(steps)} steps, losses "
            f"{lengths}, smoothing {smoothing}"
        )
    axes = _loss_axes()
    for number, (name, values) in enumerate(losses_by_name.items()):
        colour = f"C{number}"
        if smoothing > 1:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, trailing_mean(values, smoothing), color=colour, linewidth=1.5, label=name)
    axes.legend()
    _write_losses(path, axes)


def noise_levels_png(
    path: str | os.PathLike, steps: Sequence[int], losses_by_timestep: Mapping[int, Sequence[float]]
) -> None:
    """Draws a loss against training steps, a curve per timestep and, dashed, their mean; logarithmic where it can be.

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

    axes = _loss_axes()
    # A point alone makes no line.
    style = {"marker": ".", "linewidth": 1.5}
    for timestep, values in losses_by_timestep.items():
        # The yellow end of the map is hard to see on white.
        axes.plot(steps, values, color=colormaps["viridis"](0.9 * timestep / 1000), label=f"t = {timestep}", **style)
    if len(losses_by_timestep) > 1:
        axes.plot(steps, np.mean([*losses_by_timestep.values()], axis=0), "k--", label="mean", **style)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _write_losses(path, axes)


def _loss_axes():
    # Importing matplotlib takes about a second, which only those who draw should wait. Figure without pyplot keeps no
    # global state.
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, 4.5), dpi=100, layout="constrained").add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    return axes


def _write_losses(path: str | os.PathLike, axes) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if all(np.min(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    write_picture(path, FigureCanvasAgg(axes.figure).print_png)


def trailing_mean(values: Sequence[float], width: int) -> np.ndarray:
    """Mean of each value and up to width − 1 before it: f64[n]. The first points average what there is."""
    total = np.convolve(np.asarray(values, np.float64), np.ones(width))[: len(values)]
    return total / np.minimum(np.arange(1, len(values) + 1), width)
