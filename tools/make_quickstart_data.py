"""Makes the quickstart's data set: colour emoji with their Unicode names as captions, as feature shards. No network.

    python -m tools.make_quickstart_data --out data/quickstart

Two stand-ins keep it offline: a linear autoencoder (`models/linear_autoencoder.py`) fitted to the glyphs in place of
the VAE, and a fixed random vector per word (`word_encoder.WordEncoder`) in place of T5. Shards, both encoders,
`quickstart.json` (what was chosen, and how) and `contact_sheet.png` (each glyph, and beside it what the autoencoder
keeps of it) land in one directory. The label is the index of the
glyph's group, for the class-conditional first stage. The same font and options give the same data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from pixart_jax.commands import BEGINS_AGAIN, name_argument, path_argument, seed_argument, tool, with_commands
from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.registry import load_autoencoder, load_text_encoder
from pixart_jax.errors import InputError
from pixart_jax.figures.images import labelled_grid, save_png, to_uint8
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

from .emoji import GROUPS, choose_glyphs, find_font
from .miniature import Entry, check_made, make_or_check, written

RECIPE_FILE = "quickstart.json"
CONTACT_SHEET_FILE = "contact_sheet.png"
# Raise it when the choice, the drawing, the encoders or the format change, so that old data is not taken for new.
RECIPE_VERSION = 3

BLOCK, CHANNELS, PATCH_SIZE = 8, 12, 2
TEXT_DIM, MAX_TEXT_TOKENS = 128, 12
RECORDS_PER_SHARD = 64


def make(out: pathlib.Path, font_path: str | None, recipe: dict) -> str:
    """Draws, encodes and writes the data set for `recipe` (see `main`) and returns a summary in words."""
    size, seed = recipe["size"], recipe["seed"]
    font, file = find_font(font_path)
    glyphs = choose_glyphs(font, recipe["num_glyphs"], size)
    pixels = np.stack([glyph.pixels for glyph in glyphs])
    images = pixels.astype(np.float32) / 127.5 - 1.0
    autoencoder = LinearAutoencoder.fit(images, block=BLOCK, channels=CHANNELS)
    latents = autoencoder.encode(images)
    decoded = to_uint8(autoencoder.decode(latents))
    captions = [glyph.caption for glyph in glyphs]
    words = WordEncoder.train(captions, TEXT_DIM, MAX_TEXT_TOKENS, seed)
    entries = [
        Entry(f"u{ord(glyph.character):05x}", latents[i], glyph.caption, glyph.label) for i, glyph in enumerate(glyphs)
    ]
    how = {"patch_size": PATCH_SIZE, "resolution": size, "num_classes": len(GROUPS)}
    with written(out, entries, autoencoder, words, records_per_shard=RECORDS_PER_SHARD, **how) as writer:
        sheet = [(np.stack(pair), caption) for *pair, caption in zip(pixels, decoded, captions, strict=True)]
        save_png(writer.path / CONTACT_SHEET_FILE, labelled_grid(sheet, columns=8))
        listing = [{"character": g.character, "caption": g.caption, "label": g.label} for g in glyphs]
        record = {
            "recipe": {**recipe, "font_sha256": _sha256(file)},
            "font": file.name,
            "groups": list(GROUPS),
            "glyphs": listing,
        }
        (writer.path / RECIPE_FILE).write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    files = [file for file in out.iterdir() if file.is_file()]
    shards = -(-len(glyphs) // RECORDS_PER_SHARD)
    return (
        f"{out}: {len(glyphs)} glyphs in {shards} shards, {len(words.embedding)} words, "
        f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB; the autoencoder keeps "
        f"{psnr(pixels, decoded):.1f} dB; look at {out / CONTACT_SHEET_FILE}"
    )


def psnr(images: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB between two uint8 arrays, over all pixels at once."""
    error = np.mean((images.astype(np.float64) - decoded.astype(np.float64)) ** 2)
    return float(10.0 * np.log10(255.0**2 / error)) if error else float("inf")


def check_existing(out: pathlib.Path, font_path: str | None, recipe: dict) -> str:
    """Says that the data set at `out` is the one asked for, or raises. The font counts only when it is named.

    Raises:
      InputError: something else is at `out`, or the data set there was made otherwise or is damaged.
    """
    wanted = recipe if font_path is None else {**recipe, "font_sha256": _sha256(find_font(font_path)[1])}
    check_made(out, RECIPE_FILE, wanted, "the quickstart", part="recipe")
    manifest = read_manifest(out)
    load_autoencoder(out, manifest)
    load_text_encoder(out, manifest)
    return f"{out}: already there, {manifest.num_samples} glyphs in {len(manifest.shards)} shards; nothing to do"


def _sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=path_argument, help="directory to make, such as data/quickstart")
    parser.add_argument("--num-glyphs", type=int, default=256, help="how many glyphs (default 256)")
    parser.add_argument(
        "--size", type=int, default=64, help="side of a picture in pixels, a multiple of 16 (default 64)"
    )
    parser.add_argument("--font", type=name_argument, help="colour emoji font file (default: look in the usual places)")
    parser.add_argument("--seed", type=seed_argument, default=0, help="draws the words' vectors (default 0)")
    return parser.parse_args(argv)


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.num_glyphs < 1:
        raise InputError(f"--num-glyphs {arguments.num_glyphs}: must be at least 1")
    if arguments.size < 32 or arguments.size % (BLOCK * PATCH_SIZE):
        raise InputError(f"--size {arguments.size}: must be a multiple of {BLOCK * PATCH_SIZE}, 32 or more")
    recipe = {
        "version": RECIPE_VERSION,
        "num_glyphs": arguments.num_glyphs,
        "size": arguments.size,
        "seed": arguments.seed,
    }
    given = arguments.out, arguments.font, recipe
    print(make_or_check(arguments.out, lambda: make(*given), lambda: check_existing(*given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
