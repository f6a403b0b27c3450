"""Figures over a setting: one against another that it trades, or each against the setting."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.figures.images import write_picture


def trade_off_png(
    path: str | os.PathLike,
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    labels: Sequence[str],
) -> None:
    """Draws a line through points in their order, each with its label beside it.

    Args:
      path: PNG file to write, atomically.
      x, y: name and n values of each axis.
      labels: n, such as the guidance scales.

    Raises:
      InputError: no points, or not as many of each.
    """
    if not labels or {len(x[1]), len(y[1])} != {len(labels)}:
        raise InputError(f"trade_off_png needs n values on both axes; got {len(x[1])}, {len(y[1])} and {len(labels)}")
    # Importing matplotlib takes about a second, which only those who draw should wait.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(x[1], y[1], marker="o", markersize=4, linewidth=1.5)
    for horizontal, vertical, label in zip(x[1], y[1], labels, strict=True):
        axes.annotate(label, (horizontal, vertical), xytext=(5, 5), textcoords="offset points", fontsize=9)
    axes.set_xlabel(x[0].replace("_", " "))
    axes.set_ylabel(y[0].replace("_", " "))
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    write_picture(path, FigureCanvasAgg(figure).print_png)


def over_setting_png(
    path: str | os.PathLike, setting: tuple[str, Sequence[float]], figures: Mapping[str, Sequence[float]]
) -> None:
    """Draws figures against a setting, in panels one above the other, each with a scale of its own.

    Args:
      path: PNG file to write, atomically.
      setting: its name and n values.
      figures: n values of each name.

    Raises:
      InputError: no points, or not as many of each.
    """
    lengths = {len(values) for values in (setting[1], *figures.values())}
    if not figures or 0 in lengths or len(lengths) > 1:
        raise InputError(f"over_setting_png needs n values of each of some figures; got {sorted(lengths)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 1 + 2 * len(figures)), dpi=100, layout="constrained")
    all_axes = drawn.subplots(len(figures), sharex=True, squeeze=False)[:, 0]
    for axes, (number, (name, values)) in zip(all_axes, enumerate(figures.items()), strict=True):
        axes.plot(setting[1], values, color=f"C{number}", marker="o", markersize=4, linewidth=1.5)
        axes.set_ylabel(name.replace("_", " "))
        axes.grid(alpha=0.3)
    all_axes[-1].set_xlabel(setting[0])
    write_picture(path, FigureCanvasAgg(drawn).print_png)


def lines_picture(setting: str, panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> np.ndarray:
    """Draws figures against a number that grows by factors, in panels side by side.

    Args:
      setting: the number's name.
      panels: of each figure's name, of each line's name: the figure by the number.

    Returns:
      uint8[H, W, 3].

    Raises:
      InputError: there is nothing to draw.
    """
    if not panels or not all(line for lines in panels.values() for line in [lines, *lines.values()]):
        raise InputError("lines_picture needs a point on every line, and a line in every panel")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.5 * len(panels), 4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    all_axes = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, lines) in zip(all_axes, panels.items(), strict=True):
        for label, line in lines.items():
            axes.plot(list(line), list(line.values()), label=label, marker="o", markersize=4, linewidth=1.5)
        ticks = sorted({number for line in lines.values() for number in line})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(setting)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    all_axes[-1].legend(fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
