"""What captions name, on one page for people."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically

# Bars that can still be told apart.
_MAX_BINS = 60


def concepts_png(
    path: str | os.PathLike,
    title: str,
    *,
    per_picture: Mapping[int, int],
    appearances: Sequence[float],
    valid_above: float,
) -> None:
    """Draws how many nouns pictures have, and how often each noun appears.

    Args:
      path: PNG file to write, atomically, into a folder that is there.
      title: above all.
      per_picture: pictures by their number of nouns.
      appearances: of each distinct noun, falling.
      valid_above: nouns that appear more often than this are called valid.

    Raises:
      InputError: no pictures.
    """
    # As in curves.loss_curve_png: importing takes a second, and Figure without pyplot keeps no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not per_picture:
        raise InputError(f"{path}: a histogram of nouns needs at least one picture")
    figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
    # Of characters that the font lacks it draws boxes; of a dollar sign it would make a formula.
    figure.suptitle(title.replace("$", r"\$"), fontsize=12)
    left, right = figure.subplots(1, 2)
    _draw_per_picture(left, per_picture)
    _draw_appearances(right, np.asarray(appearances, np.float64), valid_above)
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    write_atomically(path, FigureCanvasAgg(figure).print_png)


def _draw_per_picture(axes, counts: Mapping[int, int]) -> None:
    pictures = sum(counts.values())
    numbers = np.array(sorted(counts))
    heights = np.array([counts[number] for number in numbers])
    mean = (numbers * heights).sum() / pictures
    # One caption of ten thousand words would press all others into one bar.
    most_have = int(numbers[np.searchsorted(np.cumsum(heights), 0.95 * pictures)])
    last = min(int(numbers[-1]), 2 * most_have + 1)
    width = -(-(last + 1) // _MAX_BINS)
    starts = np.arange(0, last + 1, width)
    shown = [heights[(numbers >= start) & (numbers < start + width)].sum() for start in starts]
    axes.bar(starts - 0.5, shown, width, align="edge", color="C0")
    axes.axvline(mean, color="C3", linewidth=1, label=f"mean {mean:.1f}")
    beyond = int(heights[numbers >= starts[-1] + width].sum())
    axes.set_title(f"Nouns per picture{f' ({beyond:,} pictures have more)' if beyond else ''}")
    axes.set_xlabel("nouns")
    axes.set_ylabel("pictures")
    axes.set_xlim(-0.5, starts[-1] + width - 0.5)
    axes.legend(loc="best", fontsize=9)


def _draw_appearances(axes, appearances: np.ndarray, valid_above: float) -> None:
    axes.set_title("How often each noun appears")
    axes.set_xlabel("rank of the noun")
    axes.set_ylabel("appearances")
    if not len(appearances):
        axes.text(0.5, 0.5, "no nouns", transform=axes.transAxes, ha="center", va="center", color="grey")
        return
    # Millions of points would be drawn one above the other.
    ranks = np.unique(np.geomspace(1, len(appearances), min(len(appearances), 2000)).astype(int))
    axes.plot(ranks, appearances[ranks - 1], color="C0", marker="." if len(ranks) < 30 else "")
    valid = int((appearances > valid_above).sum())
    label = f"more than {valid_above:g}: {valid:,} of {len(appearances):,} ({valid / len(appearances):.1%})"
    axes.axhline(valid_above, color="C3", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="best", fontsize=9)
