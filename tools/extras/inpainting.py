"""Inpainting: the left half of a glyph is kept, the right half is drawn anew as another one."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import enlarged, labelled_grid
from pixart_jax.generation.request import Request
from pixart_jax.generation.starts import inpainting, latents_of, paste_back

from .chapter import Chapter, Desk, Result

NUM_PICTURES, NUM_SHOWN = 32, 8


def run(desk: Desk) -> Result:
    glyphs, pipeline = desk.glyphs, desk.pipeline()
    given = np.unique(np.linspace(0, len(glyphs.captions) - 1, NUM_PICTURES).astype(int))
    asked = np.roll(given, len(given) // 2)
    mask = np.zeros((glyphs.size, glyphs.size), bool)
    mask[:, glyphs.size // 2 :] = True

    pictures = glyphs.pixels[given]
    drawn = []
    for picture, other in zip(pictures, asked, strict=True):
        request = Request(glyphs.captions[other], seed=int(other), batch_size=1)
        start = inpainting(pipeline, request, latents_of(pipeline, request, picture), mask)
        drawn.append(pipeline.draw(dataclasses.replace(request, start=start))[0])
    without = np.stack(drawn)
    pasted = np.stack([paste_back(one, picture, mask) for one, picture in zip(without, pictures, strict=True)])
    kept = glyphs.kept(pictures)

    rows: list[dict[str, str | int | float]] = []
    for name, result in (("drawn", without), ("drawn, and pasted back", pasted), ("autoencoder alone", kept)):
        from_given, from_kept = (np.abs(result.astype(int) - other)[:, ~mask] for other in (pictures, kept))
        rows.append(
            {
                "outside the mask, of 255": name,
                "largest difference from the given picture": int(from_given.max()),
                "mean": float(from_given.mean()),
                "largest from what the autoencoder keeps of it": int(from_kept.max()),
            }
        )
    gallery = glyphs.kept(glyphs.pixels)
    half = glyphs.size // 2
    inside = retrieval_at_1(without[:, :, half:], gallery[:, :, half:], asked)
    order = np.linspace(0, len(given) - 1, NUM_SHOWN).astype(int)
    entries = [
        (
            [enlarged(one) for one in (pictures[i], np.where(mask[..., None], 255, kept[i]), without[i], pasted[i])],
            f"{glyphs.captions[given[i]]} + {glyphs.captions[asked[i]]}",
        )
        for i in dict.fromkeys(order)
    ]
    heading = "given | what is kept of it | drawn | pasted back"
    return Result(
        rows,
        {"pictures": len(given), "right_half_is_the_asked_glyph": inside},
        {"inpainting": labelled_grid(entries, columns=2, heading=heading)},
    )


CHAPTER = Chapter("inpainting", "Inpainting", run)
