"""Distribution matching distillation: the base learns to draw in one step, from pairs that it draws itself."""

from __future__ import annotations

import numpy as np

from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import enlarged, labelled_grid
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request

from .. import teacher_pairs
from .chapter import Chapter, Desk, Result

NUM_PICTURES, NUM_SHOWN = 64, 15
# Each caption four times; half of the base's steps, in which it draws nearly as well.
PAIRS = ("--num-pairs", "1024", "--num-steps", "10", "--batch-size", "64", "--pairs-per-shard", "256")
TRAINING = (
    # The base draws with a guidance scale of 3, which is 1 + w.
    "objective.kind=distribution_matching", "objective.guidance=2.0", "objective.distance=l2",
    "objective.regression_weight=1.0", "optimizer.learning_rate=3e-4", "optimizer.warmup_steps=20",
    "optimizer.schedule=constant", "data.batch_size=32", "train.num_steps=200", "train.ema_decay=0.98",
    "train.checkpoint_every=50", "train.log_every=25", "sample.sampler=dmd", "sample.num_steps=1",
)  # fmt: skip


def run(desk: Desk) -> Result:
    glyphs, pairs = desk.glyphs, desk.folder / "pairs"
    if not pairs.exists():
        desk.use(teacher_pairs, "--checkpoint", desk.base, "--source", glyphs.folder, "--out", pairs, *PAIRS)
    workdir = desk.train("dmd", f"data.pair_source={pairs}", *TRAINING)
    base, student = desk.pipeline(), desk.pipeline(workdir)
    places = np.unique(np.linspace(0, len(glyphs.captions) - 1, NUM_PICTURES).astype(int))
    captions, gallery = [glyphs.captions[place] for place in places], glyphs.kept(glyphs.pixels)

    def draw(pipeline: TextToImage, sampler: str, num_steps: int) -> np.ndarray:
        # Noises of no pair, whose seed is 0.
        seeds = [int(place) + 1 for place in places]
        return pipeline.draw(Request(captions, seed=seeds, sampler=sampler, num_steps=num_steps, batch_size=len(seeds)))

    ways = {
        "the base in 20 steps": draw(base, "dpm-solver", 20),
        "the base in 1 step": draw(base, "dpm-solver", 1),
        "distilled, in 1 step": draw(student, "dmd", 1),
    }
    whole = ways["the base in 20 steps"].astype(np.float64)
    rows: list[dict[str, str | int | float]] = [
        {
            "way": name,
            "retrieval@1": retrieval_at_1(pictures.astype(np.float32), gallery.astype(np.float32), places),
            "distance from 20 steps, of 255": float(np.sqrt(np.square(pictures - whole).mean((1, 2, 3))).mean()),
        }
        for name, pictures in ways.items()
    ]
    order = np.linspace(0, len(places) - 1, NUM_SHOWN).astype(int)
    entries = [([enlarged(pictures[i]) for pictures in ways.values()], captions[i]) for i in dict.fromkeys(order)]
    return Result(
        rows,
        {"pictures": float(len(places))},
        {"one_step": labelled_grid(entries, columns=3, heading=" | ".join(ways))},
    )


CHAPTER = Chapter("one_step", "One step: distribution matching distillation", run)
