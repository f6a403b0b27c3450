"""DreamBooth: a glyph that the model has never seen is taught under a new word, from four pictures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import enlarged, labelled_grid

from .. import class_pictures
from ..emoji import Glyph
from .chapter import Chapter, Desk, Result

WORD = "sks"
# Of the subject's four pictures: (size, shift right, shift down), each a share of the picture's side, and the ground.
VIEWS = ((1.0, 0.0, 0.0, 255), (0.94, 0.03, 0.0, 255), (0.94, -0.03, 0.03, 255), (0.97, 0.0, -0.03, 247))
NUM_CANDIDATES, NUM_SUBJECT, NUM_OTHERS, NUM_SHOWN = 12, 16, 128, 8
# Less than the demo's 3: the null caption is not trained here, and more guidance leads away from it.
GUIDANCE = 1.5

SETTINGS = (
    "optimizer.learning_rate=4e-4", "optimizer.warmup_steps=20", "data.text_drop_prob=0.0", "train.num_steps=1500",
    "train.ema_decay=0.98", "train.checkpoint_every=100", "train.log_every=50",
)  # fmt: skip


def views(picture: np.ndarray) -> np.ndarray:
    """Four pictures uint8[4, size, size, 3] of one, uint8[size, size, 3]."""
    size = len(picture)
    found = []
    for share, right, down, ground in VIEWS:
        side = round(share * size)
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
        page = Image.new("RGB", (size, size), (255, 255, 255))
        page.paste(small, (round((size - side) / 2 + right * size), round((size - side) / 2 + down * size)))
        found.append(np.minimum(np.asarray(page), ground))
    return np.stack(found).astype(np.uint8)


def least_alike(glyphs: Sequence[Glyph], known: np.ndarray) -> Glyph:
    """That of the glyphs that is farthest from what is known, pictures uint8[n, size, size, 3], to whose nearest."""
    thumbnails = known[:, ::4, ::4].astype(np.float32)

    def distance(glyph: Glyph) -> float:
        return float(np.abs(thumbnails - glyph.pixels[::4, ::4]).mean(axis=(1, 2, 3)).min())

    return max(glyphs, key=distance)


def run(desk: Desk) -> Result:
    glyphs = desk.glyphs
    subject = least_alike(glyphs.unknown(NUM_CANDIDATES), glyphs.pixels)
    words = glyphs.words.with_words([WORD])
    taught = glyphs.write(desk.folder / "subject", views(subject.pixels), [WORD] * len(VIEWS), words=words)
    kept = glyphs.write(desk.folder / "class", draw_class(desk), glyphs.captions, words=words)
    runs = {
        "the base": None,
        # Of the subject both see as many pictures a step.
        "with prior preservation": desk.train(
            "with_prior", f"data.source={taught}", f"data.prior_source={kept}", "data.batch_size=32", *SETTINGS
        ),
        "without": desk.train("without_prior", f"data.source={taught}", "data.batch_size=16", *SETTINGS),
    }
    gallery = glyphs.kept(np.concatenate([glyphs.pixels, subject.pixels[None]]))
    others = np.unique(np.linspace(0, len(glyphs.captions) - 1, NUM_OTHERS).astype(int))
    captions = glyphs.named(others)
    rows: list[dict[str, str | int | float]] = []
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, workdir in runs.items():
        pipeline = desk.pipeline(workdir)
        mine = pipeline(WORD, num_images=NUM_SUBJECT, guidance_scale=GUIDANCE, batch_size=64)
        theirs = pipeline(captions, seed=others.tolist(), guidance_scale=GUIDANCE, batch_size=64)
        drawn[name] = mine, theirs
        rows.append(
            {
                "model": name,
                f'retrieval@1 of "{WORD}"': retrieval_at_1(mine, gallery, np.full(len(mine), len(gallery) - 1)),
                "of other captions": retrieval_at_1(theirs, gallery, others),
            }
        )
    figures = {"pictures_of_the_subject": len(VIEWS), "of_other_captions": len(others)}
    return Result(rows, figures, {"dreambooth": page(drawn, views(subject.pixels), captions)})


def draw_class(desk: Desk) -> np.ndarray:
    """The base's own pictures uint8[n, size, size, 3] of all captions, by tools.class_pictures."""
    folder, glyphs = desk.folder / "class_pictures", desk.glyphs
    prompts = [word for caption in glyphs.captions for word in ("--prompt", caption)]
    options = ("--num-images", "1", "--batch-size", "64", "--out", folder)
    desk.use(class_pictures, "--checkpoint", desk.base, *prompts, *options)
    return np.stack([np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(len(glyphs.captions))])


def page(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], given: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """The four pictures; what each model draws of the word, and of other captions."""
    shown = np.unique(np.linspace(0, len(captions) - 1, NUM_SHOWN).astype(int))
    entries = [([enlarged(one) for one in given], "the four pictures")]
    entries += [([enlarged(one) for one in mine[:4]], f"{WORD}: {name}") for name, (mine, _) in drawn.items()]
    entries += [([enlarged(theirs[i]) for _, theirs in drawn.values()], captions[i]) for i in shown]
    return labelled_grid(entries, columns=4, heading=f"other captions: {' | '.join(drawn)}")


CHAPTER = Chapter("dreambooth", "A new glyph: DreamBooth", run)
