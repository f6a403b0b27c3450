"""What the gallery's model learnt: pairs of subject and skin tone that it never saw, and words that no caption had.

    python -m tools.gallery --checkpoint runs/gallery --data data/gallery --out runs/gallery/shown

Draws captions of each set of tools.make_gallery_data from their words alone, through the model's text encoder, and
finds the nearest of all pictures. Writes SET.png (real and drawn) of each and results.json into --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import einops
import numpy as np

from pixart_jax.commands import BEGINS_AGAIN, command, path_argument, seed_argument, tool, with_commands
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.errors import InputError
from pixart_jax.evaluators.retrieval import retrieval_ranks
from pixart_jax.figures.images import labelled_grid, save_png, to_uint8
from pixart_jax.files import check_writable, errors_naming, write_atomically
from pixart_jax.generation.pipeline import TextToImage

from .make_gallery_data import SYNONYMS
from .recipe_report import nearest_pictures

SETS = ("train", "held_out", "synonyms")
# Captions drawn of each set, spread over it; and shown.
NUM_DRAWN, NUM_SHOWN = 96, 40
# Pictures are compared at so many pixels a side: those of a data set at full size would not fit in memory.
COMPARED_AT = 64
_TONE = re.compile(r":? ((?:medium-)?(?:light|dark)|medium) skin tone(, )?")


@dataclasses.dataclass(frozen=True)
class Shown:
    """Captions of one set, and their pictures uint8[n, H, W, 3]."""

    captions: list[str]
    real: np.ndarray
    drawn: np.ndarray


def subject_and_tone(caption: str) -> tuple[str, str]:
    """The caption without its skin tone, and the tone; "" for none."""
    found = _TONE.search(caption)
    if found is None:
        return caption, ""
    return _TONE.sub(": " if found[2] else "", caption), found[1]


def small(pictures: np.ndarray) -> np.ndarray:
    """uint8[n, H, W, 3] to f32[n, h, w, 3]: means of squares of pixels, so that h is at most COMPARED_AT."""
    factor = max(1, pictures.shape[1] // COMPARED_AT)
    return einops.reduce(pictures.astype(np.float32), "n (h p) (w q) c -> n h w c", "mean", p=factor, q=factor)


def real_pictures(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """(caption, uint8[H, W, 3]) of every sample, as the autoencoder keeps it."""
    reader = ShardReader(folder)
    decode = load_autoencoder(folder, reader.manifest).decode
    for i in range(len(reader)):
        yield reader[i].caption, to_uint8(decode(np.asarray(reader[i].latent_mean, np.float32)))


def measure(shown: Shown, captions: Sequence[str], gallery: np.ndarray) -> dict[str, float]:
    """Shares of drawn pictures that are nearest to their own, to their subject's and to their tone's.

    Args:
      captions, gallery: of all pictures, as `small` makes them.
    """
    drawn = small(shown.drawn)
    own = [captions.index(SYNONYMS.get(caption, caption)) for caption in shown.captions]
    ranks = retrieval_ranks(drawn, gallery, np.array(own))
    nearest = [subject_and_tone(captions[i]) for i in nearest_pictures(drawn, gallery)]
    wanted = [subject_and_tone(captions[i]) for i in own]
    subjects, tones = ([a[k] == b[k] for a, b in zip(nearest, wanted, strict=True)] for k in (0, 1))
    return {
        "captions": len(own),
        "retrieval_at_1": float(np.mean(ranks == 0)),
        "retrieval_at_10": float(np.mean(ranks < 10)),
        "median_rank": float(np.median(ranks)),
        "right_subject": float(np.mean(subjects)),
        "right_tone": float(np.mean(tones)),
    }


def show(checkpoint: pathlib.Path, data: pathlib.Path, out: pathlib.Path, seed: int) -> str:
    """Draws, measures and writes; returns the results as JSON."""
    folders = {name: data / name for name in SETS if (data / name / "manifest.json").is_file()}
    if "train" not in folders:
        raise InputError(f"{data} holds no data of the gallery; {command('make_gallery_data')} --out {data}")
    pipeline = TextToImage.from_checkpoint(checkpoint, keep_loaded=True)
    check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    captions: list[str] = []
    gallery: list[np.ndarray] = []
    sets: dict[str, Shown] = {}
    for name, folder in folders.items():
        real = list(real_pictures(folder))
        if name != "synonyms":  # Those are of train/.
            captions += [caption for caption, _ in real]
            gallery += [small(picture[None])[0] for _, picture in real]
        chosen = [real[i] for i in np.unique(np.linspace(0, len(real) - 1, NUM_DRAWN).astype(int))]
        words = [caption for caption, _ in chosen]
        print(f"drawing {len(words)} captions of {name}", flush=True)
        drawn = pipeline(words, seed=seed, batch_size=16)
        sets[name] = Shown(words, np.stack([picture for _, picture in chosen]), drawn)
    references = np.stack(gallery)
    results = {name: measure(shown, captions, references) for name, shown in sets.items()}
    for name, shown in sets.items():
        save_png(out / f"{name}.png", sheet(shown))
    text = json.dumps({"pictures": len(captions), "seed": seed, **results}, indent=1) + "\n"
    write_atomically(out / "results.json", lambda file: file.write(text.encode()))
    return text


def sheet(shown: Shown) -> np.ndarray:
    """uint8[H, W, 3]: real and drawn, side by side; below a synonym the caption that was learnt."""
    entries = []
    for i in np.unique(np.linspace(0, len(shown.captions) - 1, NUM_SHOWN).astype(int)):
        caption = shown.captions[i]
        known = f" ({SYNONYMS[caption]})" if caption in SYNONYMS else ""
        entries.append((np.stack([shown.real[i], shown.drawn[i]]), caption + known))
    return labelled_grid(entries, columns=5, heading="real | drawn")


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=path_argument, help="workdir of a trained gallery")
    parser.add_argument("--data", required=True, type=path_argument, help="what tools.make_gallery_data made")
    parser.add_argument("--out", required=True, type=path_argument, help="for the pictures and results.json")
    parser.add_argument("--seed", type=seed_argument, default=0, help="of the noise that is drawn from (default 0)")
    args = parser.parse_args(argv)
    with errors_naming(args.out):
        results = show(args.checkpoint, args.data, args.out, args.seed)
    print(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
