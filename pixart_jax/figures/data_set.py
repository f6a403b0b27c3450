"""A data set on one page for people: charts of its figures, and a sheet of its pictures."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixart_jax.errors import InputError
from pixart_jax.figures.images import labelled_grid
from pixart_jax.files import write_atomically

# Bars that can still be told apart beside each other, and so the bins of a histogram.
_MAX_BINS = 60
_CAPTION_LINES, _HEADING_SIZE = 4, 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFigures:
    """What `data_png` draws.

    Attributes:
      buckets: samples per bucket (height, width) in pixels.
      caption_lengths: int[max_text_tokens + 1], how many captions have 0, 1, ... tokens; of length 1 without text.
      captions_per_picture: int[n], how many pictures have 0, 1, ... captions.
      record_bytes: int[samples], the size of each record.
      latent_mean, latent_std: f64[C], of each channel after the latent scale.
    """

    buckets: Mapping[tuple[int, int], int]
    caption_lengths: np.ndarray
    captions_per_picture: np.ndarray
    record_bytes: np.ndarray
    latent_mean: np.ndarray
    latent_std: np.ndarray


def data_png(path: str | os.PathLike, title: str, figures: DataFigures) -> None:
    """Draws how a data set is spread over buckets, caption lengths, captions per picture, sizes and latent channels.

    Args:
      path: PNG file to write, atomically; its folder is made.
      title: above all.
      figures: of at least one sample.

    Raises:
      InputError: no samples.
    """
    # As in curves.loss_curve_png: importing takes a second, and Figure without pyplot keeps no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not figures.buckets or not len(figures.record_bytes):
        raise InputError(f"{path}: a data set's charts need at least one sample")
    figure = Figure(figsize=(16, 9), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=14)
    axes = figure.subplot_mosaic("AAB\nCDE")
    _draw_buckets(axes["A"], figures.buckets)
    _draw_latents(axes["B"], figures.latent_mean, figures.latent_std)
    _draw_lengths(axes["C"], figures.caption_lengths)
    _draw_captions(axes["D"], figures.captions_per_picture)
    _draw_bytes(axes["E"], figures.record_bytes)
    for each in axes.values():
        each.grid(axis="y", alpha=0.3)
        each.set_axisbelow(True)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, FigureCanvasAgg(figure).print_png)


def _draw_buckets(axes, buckets: Mapping[tuple[int, int], int]) -> None:
    sizes = sorted(buckets, key=lambda size: (size[0] / size[1], size))
    counts = [buckets[size] for size in sizes]
    bars = axes.bar(range(len(sizes)), counts, color=["C1" if height == width else "C0" for height, width in sizes])
    names = [f"{height}×{width}" for height, width in sizes]
    axes.set_xticks(range(len(sizes)), names, rotation=90 if len(sizes) > 8 else 0, fontsize=9)
    axes.set_xlim(-0.6, max(len(sizes), 5) - 0.4)
    # Above a few dozen bars numbers would overlap.
    if len(sizes) <= 45:
        axes.bar_label(bars, [f"{n:,}" for n in counts], fontsize=8, rotation=90 if len(sizes) > 12 else 0, padding=2)
        axes.margins(y=0.15)
    axes.set_title("Samples per bucket, wide to tall (square in orange)")
    axes.set_xlabel("height×width in pixels")
    axes.set_ylabel("samples")


def _draw_latents(axes, mean: np.ndarray, std: np.ndarray) -> None:
    channels = np.arange(len(mean))
    axes.axhspan(0.8, 1.25, color="C2", alpha=0.15, linewidth=0)
    axes.axhline(1, color="C2", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.bar(channels - 0.2, std, 0.4, color="C0", label="standard deviation")
    axes.bar(channels + 0.2, mean, 0.4, color="C3", label="mean")
    axes.set_xticks(channels)
    axes.margins(y=0.15)
    axes.set_title("Latents × scale (their std should be about 1)")
    axes.set_xlabel("channel")
    axes.legend(loc="best", fontsize=9)


def _draw_lengths(axes, counts: np.ndarray) -> None:
    axes.set_title("Caption lengths")
    axes.set_xlabel("tokens")
    axes.set_ylabel("captions")
    if not counts.sum():
        return _say_nothing(axes, "no captions")
    limit = len(counts) - 1
    width = -(-limit // _MAX_BINS)
    # Bins end at the limit, so that the captions cut there are not hidden among shorter ones.
    starts = np.arange(limit, 0, -width)[::-1] - width + 1
    heights = [counts[max(start, 0) : start + width].sum() for start in starts]
    axes.bar(starts - 0.5, heights, width, align="edge", color="C0")
    axes.axvline(limit + 0.5, color="C3", linewidth=1)
    place = (limit + 0.5 - 0.012 * limit, 0.97)
    label = f"limit {limit}: {counts[-1] / counts.sum():.1%} have as many"
    axes.text(*place, label, transform=axes.get_xaxis_transform(), color="C3", ha="right", va="top", fontsize=9)
    axes.set_xlim(min(1, starts[0]) - 0.5, limit + 0.5 + 0.01 * limit)
    axes.margins(y=0.2)


def _draw_captions(axes, counts: np.ndarray) -> None:
    axes.set_title("Captions per picture")
    axes.set_xlabel("captions")
    axes.set_ylabel("pictures")
    if not counts[1:].sum():
        return _say_nothing(axes, "no captions")
    bars = axes.bar(range(len(counts)), counts, color="C0")
    if len(counts) <= 12:
        axes.set_xticks(range(len(counts)))
        axes.bar_label(bars, [f"{n / counts.sum():.1%}" if n else "" for n in counts], fontsize=9, padding=2)
    axes.set_xlim(-0.6, max(len(counts), 5) - 0.4)
    axes.margins(y=0.15)


def _draw_bytes(axes, sizes: np.ndarray) -> None:
    sizes = sizes / 1000
    axes.hist(sizes, bins=min(_MAX_BINS, max(10, len(np.unique(sizes)))), color="C0")
    axes.axvline(sizes.mean(), color="C3", linewidth=1, label=f"mean {sizes.mean():,.1f} kB")
    axes.set_title("Size of a record")
    axes.set_xlabel("kB")
    axes.set_ylabel("records")
    axes.set_xlim(left=0)
    axes.legend(loc="best", fontsize=9)


def _say_nothing(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="grey")
    axes.set_xticks([])
    axes.set_yticks([])


def contact_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], heading: str, *, tile: int = 208, columns: int = 8
) -> np.ndarray:
    """Pictures of any shapes on one page, each whole in a square tile, its caption below.

    Args:
      pictures: uint8[H, W, 3] each; scaled to fit the tile, whose rest stays white.
      captions: one each; what does not fit in four lines ends in an ellipsis.
      heading: a line above all.
      tile: side of a tile in pixels.
      columns: the most pictures in a row.

    Returns:
      uint8[height, width, 3].

    Raises:
      InputError: no pictures.
    """
    tiles = []
    for picture in pictures:
        scale = tile / max(picture.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        page = Image.new("RGB", (tile, tile), "white")
        scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        page.paste(scaled, ((tile - width) // 2, (tile - height) // 2))
        tiles.append(np.asarray(page))
    grid = labelled_grid(list(zip(tiles, captions, strict=True)), min(columns, len(tiles)), 8, _CAPTION_LINES)
    font = ImageFont.load_default(_HEADING_SIZE)
    width = max(grid.shape[1], round(font.getlength(heading)) + 2 * _HEADING_SIZE)
    page = Image.new("RGB", (width, grid.shape[0] + 2 * _HEADING_SIZE), "white")
    ImageDraw.Draw(page).text((_HEADING_SIZE, _HEADING_SIZE // 2), heading, font=font, fill="black")
    page.paste(Image.fromarray(grid), (0, 2 * _HEADING_SIZE))
    return np.asarray(page)
