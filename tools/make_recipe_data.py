"""Makes the data of the recipe in miniature (`python -m tools.recipe`): emoji on coloured grounds. No network.

    python -m tools.make_recipe_data --out data/recipe
    python -m tools.make_recipe_data --out data/recipe --align-weights FILE     # adds aligned/

A picture is one of 64 emoji on one of eight grounds, at 64 px, and again at 128 px on canvases of seven aspect ratios.
One ground of every emoji is held out, so that what is held out is new as a whole and known in its parts. Below --out:

    dense/      64 px, captions that say all: "red apple on a yellow ground"; the label is the emoji's group
    terse/      the same pictures with captions as found on the web, which say little: "apple"
    held_out/   those that are left out, with dense captions
    large/, large_held_out/   128 px; captions say where on the canvas the emoji stands
    aligned/    dense/ again, with what EfficientNet-lite0 sees in the pictures, for representation alignment

All share the quickstart's two stand-ins, one linear autoencoder and one word encoder (tools/make_quickstart_data.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pathlib
import sys
from collections.abc import Sequence

import einops
import numpy as np

from pixart_jax.commands import BEGINS_AGAIN, name_argument, path_argument, tool, with_commands
from pixart_jax.data.shards.feature_shards import FeatureShardWriter, ShardReader
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.picture_features import PictureFeatures, open_features
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE, copy_encoder_files
from pixart_jax.errors import InputError
from pixart_jax.figures.images import labelled_grid, save_png, to_uint8
from pixart_jax.files import errors_naming
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

from .emoji import GROUPS, Glyph, choose_glyphs, find_font, render
from .miniature import Entry, check_made, gathered, make_or_check, written

BLOCK, CHANNELS, PATCH_SIZE = 8, 12, 2
TEXT_DIM, MAX_TEXT_TOKENS = 128, 16
SEED = 0
# Raise it when anything here changes, so that old data are not taken for new.
VERSION = 1
RECIPE_FILE = "recipe.json"
ALIGNED = "aligned"

# Lighter or darker than most emoji, so that none vanishes.
GROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "pink": (255, 170, 190),
    "yellow": (255, 235, 130),
    "green": (120, 190, 130),
    "blue": (130, 180, 240),
    "violet": (120, 80, 160),
    "grey": (150, 150, 150),
}
SMALL, LARGE = 64, 128
# (height, width) at 128 px: no more tokens than the square has, as in the reference's tables.
LARGE_BUCKETS = ((128, 128), (96, 160), (160, 96), (80, 192), (192, 80), (64, 256), (256, 64))
# A picture at 64 px has so many at 128 px, of as many aspect ratios.
CANVASES_PER_PICTURE = 3


@dataclasses.dataclass(frozen=True)
class Picture:
    """pixels: uint8[h, w, 3]; dense and terse: its captions; label: index of its group; held_out: kept from
    training."""

    key: str
    pixels: np.ndarray
    dense: str
    terse: str
    label: int
    held_out: bool


def small_pictures(font, glyphs: Sequence[Glyph]) -> list[Picture]:
    """Every glyph on every ground at 64 px."""
    return [_picture(font, glyph, i, ground, (SMALL, SMALL)) for i, glyph in enumerate(glyphs) for ground in GROUNDS]


def large_pictures(font, glyphs: Sequence[Glyph]) -> list[Picture]:
    """Every glyph on every ground at 128 px, in the square and, at a random place, on some of the other canvases."""
    rng = np.random.default_rng(SEED)
    pictures = []
    for i, glyph in enumerate(glyphs):
        for ground in GROUNDS:
            others = rng.choice(np.arange(1, len(LARGE_BUCKETS)), CANVASES_PER_PICTURE - 1, replace=False)
            for bucket in (LARGE_BUCKETS[0], *(LARGE_BUCKETS[j] for j in others)):
                pictures.append(_picture(font, glyph, i, ground, bucket, place=int(rng.integers(3))))
    return pictures


def _picture(font, glyph: Glyph, index: int, ground: str, bucket: tuple[int, int], place: int = 1) -> Picture:
    """One glyph on a canvas; `place` 0, 1, 2 is the beginning, middle and end of the canvas' longer side."""
    height, width = bucket
    side = min(bucket)
    colour = GROUNDS[ground]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    top, left = ((extent - side) * place // 2 for extent in bucket)
    drawn = render(font, glyph.character, side, colour)
    if drawn is None:
        raise InputError(f"the font has {glyph.caption} in colour, but not at {side} pixels; pass another --font")
    pixels[top : top + side, left : left + side] = drawn
    names = ("left", "middle", "right") if width > height else ("top", "middle", "bottom")
    where = "" if height == width else f" at the {names[place]}"
    return Picture(
        key=f"u{ord(glyph.character):05x}-{ground}-{height}x{width}",
        pixels=pixels,
        dense=f"{glyph.caption} on a {ground} ground{where}",
        terse=glyph.caption.split()[-1],
        label=glyph.label,
        # Each ground is held out equally often.
        held_out=list(GROUNDS)[index % len(GROUNDS)] == ground,
    )


def make(out: pathlib.Path, font_path: str | None, num_glyphs: int = 64) -> str:
    """Draws, encodes and writes all five sets below `out`, and returns a summary in words."""
    font, file = find_font(font_path)
    glyphs = choose_glyphs(font, num_glyphs, LARGE)
    small, large = small_pictures(font, glyphs), large_pictures(font, glyphs)
    # Of both sizes, because a block of eight pixels shows less of an emoji in the larger.
    blocks = np.concatenate([_blocks(picture.pixels) for picture in (*small, *large)])
    autoencoder = LinearAutoencoder.fit(_scaled(blocks), block=BLOCK, channels=CHANNELS)
    captions = [caption for picture in (*small, *large) for caption in (picture.dense, picture.terse)]
    words = WordEncoder.train(captions, TEXT_DIM, MAX_TEXT_TOKENS, SEED)

    sets = {
        "dense": (SMALL, [(p, p.dense) for p in small if not p.held_out]),
        "terse": (SMALL, [(p, p.terse) for p in small if not p.held_out]),
        "held_out": (SMALL, [(p, p.dense) for p in small if p.held_out]),
        "large": (LARGE, [(p, p.dense) for p in large if not p.held_out]),
        "large_held_out": (LARGE, [(p, p.dense) for p in large if p.held_out]),
    }
    record = {"version": VERSION, "font": file.name, "groups": list(GROUPS), "grounds": list(GROUNDS)}
    with gathered(out, RECIPE_FILE, record) as folder:
        for name, (resolution, pictures) in sets.items():
            write_set(folder / name, resolution, pictures, autoencoder, words)
    counts = ", ".join(f"{len(pictures)} {name}" for name, (_, pictures) in sets.items())
    return f"{out}: {counts}; {len(words.embedding)} words; look at {out}/*/contact_sheet.png"


def write_set(
    path: pathlib.Path,
    resolution: int,
    pictures: Sequence[tuple[Picture, str]],
    autoencoder: LinearAutoencoder,
    words: WordEncoder,
) -> None:
    """One directory of feature shards with both encoders beside them, and a contact sheet of some of its pictures."""
    entries = [
        Entry(picture.key, autoencoder.encode(_scaled(picture.pixels)), caption, picture.label)
        for picture, caption in pictures
    ]
    how = {"patch_size": PATCH_SIZE, "resolution": resolution, "num_classes": len(GROUPS)}
    with written(path, entries, autoencoder, words, **how) as writer:
        shown = [pictures[i] for i in np.linspace(0, len(pictures) - 1, 32).astype(int)]
        sheet = [(_thumbnail(picture.pixels, resolution)[None], caption) for picture, caption in shown]
        save_png(writer.path / "contact_sheet.png", labelled_grid(sheet, columns=8))


def add_aligned(out: pathlib.Path, features: PictureFeatures) -> str:
    """Writes aligned/ beside dense/, and returns a summary in words.

    Args:
      features: of EfficientNet-lite0.
    """
    path = out / ALIGNED
    reader = ShardReader(out / "dense")
    autoencoder = LinearAutoencoder.load(out / "dense" / LINEAR_AUTOENCODER_FILE)
    described = inspect.signature(FeatureShardWriter).parameters.keys() & vars(reader.manifest).keys()
    about = {name: getattr(reader.manifest, name) for name in described}
    with FeatureShardWriter(path, **about | {"align": features.name, "align_dim": features.dim}) as writer:
        for i in range(len(reader)):
            pixels = to_uint8(autoencoder.decode(reader[i].latent_mean.astype(np.float32)))
            writer.write(dataclasses.replace(reader[i], align=features(pixels[None])[0]))
        copy_encoder_files(out / "dense", reader.manifest, writer.path)
    return f"{path}: {len(reader)} pictures of {features.bytes_per_picture(SMALL, SMALL):,} bytes of features"


def _blocks(pixels: np.ndarray) -> np.ndarray:
    return einops.rearrange(pixels, "(h p) (w q) c -> (h w) p q c", p=BLOCK, q=BLOCK)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127.5 - 1.0


def _thumbnail(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """On a white square of as many pixels for every picture of a set; the larger set at half its size."""
    pixels = pixels[:: resolution // SMALL, :: resolution // SMALL]
    tile = np.full((resolution, resolution, 3), 255, np.uint8)
    top, left = ((resolution - extent) // 2 for extent in pixels.shape[:2])
    tile[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return tile


def check_existing(out: pathlib.Path) -> str:
    """Says that the data at `out` are there, or raises.

    Raises:
      InputError: something else is at `out`, an older version of the data, or they are damaged.
    """
    check_made(out, RECIPE_FILE, {"version": VERSION}, "the recipe")
    return f"{out}: already there; nothing to do"


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=path_argument, help="directory to make, such as data/recipe")
    parser.add_argument("--font", type=name_argument, help="colour emoji font file (default: look in the usual places)")
    parser.add_argument(
        "--align-weights", type=path_argument, metavar="FILE", help="of EfficientNet-lite0: adds aligned/"
    )
    args = parser.parse_args(argv)
    features = None
    if args.align_weights and not (args.out / ALIGNED).exists():
        # Weights of another network are refused now, not after all else has been made.
        features = open_features("efficientnet-lite0", args.align_weights)
    print(make_or_check(args.out, lambda: make(args.out, args.font), lambda: check_existing(args.out)))
    if features:
        with errors_naming(args.out, "made"):
            aligned = add_aligned(args.out, features)
        print(aligned)
    elif args.align_weights:
        print(f"{args.out / ALIGNED}: already there; nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
