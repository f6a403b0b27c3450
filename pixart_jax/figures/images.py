"""Pictures for people: grids, captions under tiles, false colours for latents, loss curves, PNG files."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pixart_jax.errors import InputError, NotFinite
from pixart_jax.files import reason, write_atomically

_FONT_SIZE = 11
_LINE_HEIGHT = 13
# Pixels along its longer side that a picture is enlarged up to.
_SEEN = 128
# A page wider than so many font sizes has a larger font.
_FONTS_PER_PAGE = 110
_ELLIPSIS = "..."  # three full stops: Pillow's built-in bitmap font has no … sign


def to_uint8(images) -> np.ndarray:
    """Rounds images f32[...] in [-1, 1] to uint8[...] in [0, 255]; what lies outside is clipped.

    Raises:
      NotFinite: NaN or infinity, which has no colour.
    """
    images = np.asarray(images, np.float32)
    if not np.isfinite(images).all():
        raise NotFinite("a decoded picture holds NaN or infinity: its latents are damaged, or its autoencoder is")
    return np.clip(np.rint((images + 1.0) * 127.5), 0.0, 255.0).astype(np.uint8)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A small picture, each of whose pixels becomes a square of several, so that it can be looked at."""
    factor = max(1, _SEEN // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def image_grid(images, columns: int, padding: int = 2) -> np.ndarray:
    """Lays uint8[n, H, W, 3] out row by row on white, `padding` pixels around and between; empty places stay white.

    Returns:
      uint8[rows·(H+padding)+padding, columns·(W+padding)+padding, 3].

    Raises:
      InputError: wrong shape or dtype, or no images or columns.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise InputError(f"image_grid takes uint8[n, H, W, 3] with n >= 1, got {images.dtype}{list(images.shape)}")
    if columns < 1 or padding < 0:
        raise InputError(f"image_grid needs columns >= 1 and padding >= 0, got {columns} and {padding}")
    count, height, width, _ = images.shape
    pitch = (height + padding, width + padding)
    grid = np.full((-(-count // columns) * pitch[0] + padding, columns * pitch[1] + padding, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * pitch[0] + padding, index % columns * pitch[1] + padding
        grid[top : top + height, left : left + width] = image
    return grid


def labelled_grid(
    entries: Sequence[tuple[np.ndarray | Sequence[np.ndarray], str]],
    columns: int = 1,
    padding: int = 4,
    caption_lines: int = 4,
    heading: str = "",
) -> np.ndarray:
    """A page of entries: tiles side by side (say real and drawn), their caption centred below.

    Entries of one size stay in their order, `columns` in a row. Of several sizes those of about the same height share a
    row, as many as are about as wide together, so that little of the page is empty.

    Args:
      entries: (tiles, caption) pairs: uint8[k, H, W, 3], or k of any uint8[H, W, 3]; a single uint8[H, W, 3] is one
        tile.
      columns: entries in one row of the page.
      padding: white pixels around and between.
      caption_lines: the most lines of a caption; words wrap, and what is left over ends in an ellipsis.
      heading: a line above all.

    Returns:
      uint8[height, width, 3].

    Raises:
      InputError: no entries, or tiles of another shape or dtype.
    """
    all_tiles = [[tiles] if isinstance(tiles, np.ndarray) and tiles.ndim == 3 else list(tiles) for tiles, _ in entries]
    if not all_tiles or any(tile.ndim != 3 or tile.dtype != np.uint8 for tiles in all_tiles for tile in tiles):
        shapes = sorted({f"{tile.dtype}{list(tile.shape)}" for tiles in all_tiles for tile in tiles})
        raise InputError(f"labelled_grid needs at least one entry, and tiles uint8[H, W, 3]; got {', '.join(shapes)}")
    framed = [_side_by_side(tiles, padding // 2) for tiles in all_tiles]
    rows = _rows([frame.shape[:2] for frame in framed], columns, padding)
    width = padding + max(sum(framed[i].shape[1] + padding for i in row) for row in rows)
    # Pages are looked at as wholes: what is on a large one must be larger to be read.
    font_size = max(_FONT_SIZE, width // _FONTS_PER_PAGE)
    font = ImageFont.load_default(font_size)
    line_height = round(_LINE_HEIGHT * font_size / _FONT_SIZE)
    captions = [
        wrap_caption(text, frame.shape[1], font.getlength, caption_lines)
        for frame, (_, text) in zip(framed, entries, strict=True)
    ]
    heights = [max(framed[i].shape[0] + line_height * len(captions[i]) for i in row) for row in rows]
    top = padding + (line_height if heading else 0)
    page = Image.new("RGB", (width, top + sum(height + padding for height in heights)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((padding, padding // 2), heading, font=font, fill="black")
    for row, height in zip(rows, heights, strict=True):
        left = padding
        for i in row:
            page.paste(Image.fromarray(framed[i]), (left, top))
            for number, line in enumerate(captions[i]):
                indent = max((framed[i].shape[1] - font.getlength(line)) / 2, 0)
                draw.text(
                    (left + indent, top + framed[i].shape[0] + number * line_height), line, font=font, fill="black"
                )
            left += framed[i].shape[1] + padding
        top += height + padding
    return np.asarray(page)


def _side_by_side(tiles: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Tiles in a row on white, `gap` pixels around and between, aligned at the top."""
    height = max(tile.shape[0] for tile in tiles) + 2 * gap
    frame = np.full((height, gap + sum(tile.shape[1] + gap for tile in tiles), 3), 255, np.uint8)
    left = gap
    for tile in tiles:
        frame[gap : gap + tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1] + gap
    return frame


def _rows(sizes: Sequence[tuple[int, int]], columns: int, padding: int) -> list[list[int]]:
    """The numbers of entries (height, width) that share a row; each row about as wide as `columns` of the mean."""
    limit = columns * sum(width + padding for _, width in sizes) / len(sizes)
    rows: list[list[int]] = [[]]
    used = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        width = sizes[i][1] + padding
        if rows[-1] and used + width > limit:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += width
    return rows


def wrap_caption(caption: str, width: float, measure: Callable[[str], float], max_lines: int) -> list[str]:
    """Breaks `caption` into at most `max_lines` lines no wider than `width` as `measure(line)` says.

    A word too wide for a line of its own goes on in the next. The last line, when words are left over, ends in an
    ellipsis.
    """
    lines: list[str] = []
    words = caption.split()
    while words:
        line = words.pop(0)
        fits = next((n for n in range(min(len(line), int(width) + 1), 1, -1) if measure(line[:n]) <= width), 1)
        if fits < len(line):
            words.insert(0, line[fits:])
            line = line[:fits]
        while words and measure(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        left_over = bool(words) and len(lines) == max_lines - 1
        if left_over or measure(line) > width:
            while line and measure(line + _ELLIPSIS) > width:
                line = line[:-1]
            line = line.rstrip() + _ELLIPSIS
        lines.append(line)
        if len(lines) == max_lines:
            break
    return lines


def false_colour(latents) -> np.ndarray:
    """Latents f32[n, h, w, C] as pictures f32[n, h, w, 3] in [-1, 1]: channels 0, 1, 2 as red, green, blue.

    Each channel is centred and spans two and a half standard deviations of the whole batch either way, so that pictures
    of one batch compare. With fewer than three channels the last one is repeated.
    """
    latents = np.asarray(latents, np.float32)
    channels = latents[..., [min(channel, latents.shape[-1] - 1) for channel in range(3)]]
    mean, std = channels.mean(axis=(0, 1, 2)), channels.std(axis=(0, 1, 2))
    return np.clip((channels - mean) / np.maximum(2.5 * std, 1e-6), -1.0, 1.0)


def save_png(path: str | os.PathLike, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes uint8[H, W, 3] as PNG, creating the folder; a reader sees the whole file or none.

    Args:
      path: file to write.
      image: the pixels.
      text: PNG text chunks by keyword (latin-1, 1 to 79 characters), such as the prompt and the seed.

    Raises:
      InputError: wrong shape or dtype; or as `write_picture`.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise InputError(f"save_png takes uint8[H, W, 3], got {image.dtype}{list(image.shape)}; see to_uint8")
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    write_picture(path, lambda file: Image.fromarray(image).save(file, format="PNG", pnginfo=chunks))


def write_picture(path: str | os.PathLike, write: Callable) -> None:
    """Lets `write` fill a file, whole or not at all, in a folder that need not exist.

    Raises:
      InputError: it cannot be written: the disk is full, or something is in the way.
    """
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({reason(error)}); make room, or name another folder, and give the same "
            "command again"
        ) from error
