"""Colour emoji as pictures: which there are by Unicode name, a font that has them, and their drawing."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixart_jax.errors import InputError

# Code points by group. Python 3.11 knows them all (Unicode 14), so every Python gives the same names. Left out:
# flags, clock faces, moons, signs, letters in squares, skin tones, and glyphs whose names describe the old
# black-and-white print.
GROUPS: dict[str, Sequence[tuple[int, int]]] = {
    "face": ((0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F976), (0x1F978, 0x1F97A),
             (0x1F479, 0x1F480), (0x1F4A9, 0x1F4A9)),
    "animal": ((0x1F400, 0x1F43C), (0x1F43F, 0x1F43F), (0x1F577, 0x1F577), (0x1F980, 0x1F9AD), (0x1FAB0, 0x1FAB3)),
    "plant": ((0x1F330, 0x1F344), (0x1F490, 0x1F490), (0x1F940, 0x1F940), (0x1FAB4, 0x1FAB4)),
    "food": ((0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F382, 0x1F382), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB),
             (0x1FAD0, 0x1FAD6)),
    "heart": ((0x1F493, 0x1F49F), (0x1F5A4, 0x1F5A4), (0x1F90D, 0x1F90E), (0x1F9E1, 0x1F9E1)),
    "sky": ((0x1F300, 0x1F30E), (0x1F319, 0x1F319), (0x1F31D, 0x1F320), (0x1F327, 0x1F32A), (0x1F525, 0x1F525),
            (0x1F4A7, 0x1F4A7), (0x26C4, 0x26C5), (0x2728, 0x2728), (0x2744, 0x2744), (0x1FA90, 0x1FA90)),
    "shape": ((0x1F534, 0x1F537), (0x1F53A, 0x1F53B), (0x1F7E0, 0x1F7EB)),
    "fun": ((0x1F380, 0x1F381), (0x1F383, 0x1F384), (0x1F388, 0x1F38A), (0x1F38F, 0x1F393), (0x1F3A0, 0x1F3C0),
            (0x1F3C5, 0x1F3C6), (0x1F3C8, 0x1F3C9), (0x1F3CF, 0x1F3D3), (0x1F945, 0x1F945), (0x1F94A, 0x1F94D),
            (0x26BD, 0x26BE)),
    "place": ((0x1F3D4, 0x1F3DF), (0x1F3E0, 0x1F3E8), (0x1F3EA, 0x1F3F0), (0x1F5FB, 0x1F5FD), (0x1F5FF, 0x1F5FF),
              (0x26EA, 0x26EA), (0x26F2, 0x26F2), (0x26FA, 0x26FA)),
    "transport": ((0x1F680, 0x1F6A4), (0x1F6B2, 0x1F6B2), (0x1F6F4, 0x1F6FC), (0x26F5, 0x26F5)),
    "clothes": ((0x1F451, 0x1F462), (0x1F484, 0x1F484), (0x1F48D, 0x1F48E), (0x1F9E2, 0x1F9E6), (0x1F97B, 0x1F97F),
                (0x1FA70, 0x1FA74)),
    "object": ((0x1F4A1, 0x1F4A1), (0x1F4A3, 0x1F4A3), (0x1F4B0, 0x1F4B0), (0x1F4BB, 0x1F4BE), (0x1F4D5, 0x1F4DA),
               (0x1F4E3, 0x1F4E3), (0x1F4E6, 0x1F4E6), (0x1F4F7, 0x1F4FB), (0x1F50B, 0x1F50C), (0x1F511, 0x1F514),
               (0x1F526, 0x1F529), (0x1F52C, 0x1F52E), (0x1F9E8, 0x1F9E9), (0x1F9EF, 0x1F9FF), (0x1FA80, 0x1FA82),
               (0x1FA91, 0x1FA95)),
}  # fmt: skip
# Taken first, whatever --num-glyphs is: people will ask for these, and some differ in one word.
FIRST = (
    "dog face", "blue heart", "red apple", "cat face", "green heart", "green apple", "grinning face", "rocket",
    "yellow heart", "banana", "octopus", "purple heart", "tomato", "penguin", "automobile", "large red circle",
    "large blue circle", "strawberry", "frog face", "hamburger", "sunflower", "green book", "blue book", "orange book",
    "crown", "guitar", "fire", "rainbow", "panda face", "mushroom", "soccer ball", "house building",
)  # fmt: skip
MAX_NAME_WORDS = 5
GOLDEN_RATIO = (1 + 5**0.5) / 2

FONT_DIRECTORIES = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",  # Linux distributions
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",  # macOS
)  # fmt: skip
FONT_FILES = ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "TwemojiMozilla.ttf", "Noto-COLRv1.ttf")
# A bitmap font opens only at the sizes it was drawn at: Noto at 109, Apple's at the others; outlines open at any.
FONT_SIZES = (109, 160, 128, 136, 96, 72, 64, 48)
NOT_A_CHARACTER = "\U0010fffe"  # no font may have a glyph for it, so it shows what a missing glyph looks like

# Root-mean-square differences of pixels in [-1, 1] at 32x32. In Noto, 0.15 parts twins (clock faces lie 0.10 apart, imp
# and smiling face with horns 0.11) from mere kin, and only what is nearly all white lies within 0.35 of a blank tile.
TWIN_DISTANCE = 0.15
BLANK_DISTANCE = 0.35


@dataclasses.dataclass(frozen=True)
class Glyph:
    """A picture and its caption: pixels uint8[size, size, 3] on white, and the index of its group in GROUPS."""

    character: str
    caption: str
    label: int
    pixels: np.ndarray


def find_font(path: str | None) -> tuple[ImageFont.FreeTypeFont, pathlib.Path]:
    """Opens the emoji font at `path`, or the first usable one in the usual places.

    Raises:
      InputError: nothing there that Pillow can draw in colour.
    """
    if path is not None:
        file = pathlib.Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"--font {path}: no such file")
        font = _open_in_colour(file)
        if font is None:
            raise InputError(
                f"--font {path}: Pillow draws no colour emoji with it; give a font with CBDT, sbix or COLR version 0 "
                "glyphs, such as NotoColorEmoji.ttf"
            )
        return font, file
    unusable = []
    for name, directory in itertools.product(FONT_FILES, FONT_DIRECTORIES):
        for file in sorted(pathlib.Path(directory).expanduser().rglob(name)):
            font = _open_in_colour(file)
            if font is not None:
                return font, file
            unusable.append(f" ({file} is there, but Pillow cannot draw its kind of colour glyphs)")
    raise InputError(
        f"no usable colour emoji font found on this machine{''.join(unusable)}; install one (Debian, Ubuntu: apt-get "
        "install fonts-noto-color-emoji) or name one with --font FILE"
    )


def _open_in_colour(file: pathlib.Path) -> ImageFont.FreeTypeFont | None:
    content = file.read_bytes()
    for size in FONT_SIZES:
        try:
            # Bytes, because given the path of a file it cannot read, Pillow quietly opens a system font of that name.
            # Basic layout, because not every Pillow has the other engine, and single characters need no shaping.
            font = ImageFont.truetype(io.BytesIO(content), size, layout_engine=ImageFont.Layout.BASIC)
        except OSError:
            continue
        wanted = set(FIRST)
        if any(render(font, character, 32) is not None for character, name, _ in candidates() if name in wanted):
            return font
    return None


def candidates() -> Iterator[tuple[str, str, int]]:
    """(character, caption, label) of every glyph that may be chosen: FIRST in its order, then one per group in turn."""
    by_group = []
    for label, ranges in enumerate(GROUPS.values()):
        characters = [chr(code) for low, high in ranges for code in range(low, high + 1)]
        named = [(character, unicodedata.name(character, "").lower(), label) for character in characters]
        by_group.append([entry for entry in named if entry[1] and len(entry[1].split()) <= MAX_NAME_WORDS])
    by_caption = {entry[1]: entry for group in by_group for entry in group}
    yield from (by_caption[caption] for caption in FIRST)
    # Neighbouring code points are kin (eight trains in a row). Multiples of the golden ratio, modulo 1, are spread
    # evenly however many one takes, so a few of a group are a fair picture of all of it.
    spread = [[group[i] for i in np.argsort(np.arange(len(group)) * GOLDEN_RATIO % 1.0)] for group in by_group]
    for turn in itertools.zip_longest(*spread):
        yield from (entry for entry in turn if entry is not None and entry[1] not in FIRST)


def render(
    font: ImageFont.FreeTypeFont, character: str, size: int, ground: str | tuple[int, int, int] = "white"
) -> np.ndarray | None:
    """Draws a glyph in colour on one ground: uint8[size, size, 3], or None where the font has no coloured one.

    The ink is centred in a square as wide as the glyph's advance, so that small things stay small.
    """
    black, red = (_draw(font, character, fill) for fill in ("black", "red"))
    missing = _draw(font, NOT_A_CHARACTER, "black")
    # A coloured glyph ignores the fill colour; a monochrome one takes it.
    if (
        black is None
        or red is None
        or black.tobytes() != red.tobytes()
        or (missing and missing.tobytes() == black.tobytes())
    ):
        return None
    side = max(*black.size, round(font.getlength(character)))
    canvas = Image.new("RGBA", (side, side), ground)
    canvas.alpha_composite(black, ((side - black.width) // 2, (side - black.height) // 2))
    margin = size // 32
    inner = canvas.convert("RGB").resize((size - 2 * margin,) * 2, Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (size, size), ground)
    framed.paste(inner, (margin, margin))
    return np.asarray(framed)


def _draw(font: ImageFont.FreeTypeFont, character: str, fill: str) -> Image.Image | None:
    """The glyph's ink on transparent white, cropped to it; None where there is none."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("RGBA", (round(right - left), round(bottom - top)), (255, 255, 255, 0))
    ImageDraw.Draw(image).text((-left, -top), character, font=font, fill=fill, embedded_color=True)
    ink = image.getbbox()
    return image.crop(ink) if ink else None


def choose_glyphs(font: ImageFont.FreeTypeFont, num_glyphs: int, size: int) -> list[Glyph]:
    """The first `num_glyphs` candidates that the font has in colour, not nearly blank and with no twin before them.

    Raises:
      InputError: the font does not have so many.
    """
    chosen: list[Glyph] = []
    thumbnails = [np.ones((32, 32, 3), np.float32)]  # the blank tile, then the chosen ones'
    for character, caption, label in candidates():
        if len(chosen) == num_glyphs:
            break
        pixels = render(font, character, size)
        if pixels is None:
            continue
        small = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX)
        thumbnail = np.asarray(small, np.float32) / 127.5 - 1.0
        distance = np.sqrt(np.mean((np.stack(thumbnails) - thumbnail) ** 2, axis=(1, 2, 3)))
        if distance[0] < BLANK_DISTANCE or distance.min() < TWIN_DISTANCE:
            continue
        thumbnails.append(thumbnail)
        chosen.append(Glyph(character, caption, label, pixels))
    if len(chosen) < num_glyphs:
        raise InputError(f"--num-glyphs {num_glyphs}: the font has only {len(chosen)} distinct glyphs to choose from")
    return sorted(chosen, key=lambda glyph: (glyph.label, glyph.character))
