"""Latent consistency distillation: pictures in one to four steps, beside those of every sampler in as many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import enlarged, labelled_grid
from pixart_jax.figures.trade_off import lines_picture
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request, Start
from pixart_jax.samplers.stepwise import Glimpse

from .chapter import Chapter, Desk, Result

STEPS = (1, 2, 4, 8, 14, 20, 50)
SAMPLERS = ("dpm-solver", "ddim", "sa-solver", "euler", "heun", "iddpm")
NUM_PICTURES, NUM_SHOWN = 64, 12
# What all pictures are compared with: the model's own of the same noise.
REFERENCE_STEPS = 20
# The base draws with a guidance scale of 3, which is 1 + w.
TRAINING = (
    "objective.kind=consistency", "objective.guidance=2.0", "objective.solver_steps=5",
    "optimizer.learning_rate=3e-4", "optimizer.warmup_steps=50",
    "data.batch_size=32", "train.num_steps=2000", "train.ema_decay=0.95", "train.checkpoint_every=250",
    "sample.sampler=lcm", "sample.num_steps=1",
)  # fmt: skip


class Drawn:
    """Pictures of the same captions from the same noises, however they are drawn.

    Attributes:
      places: of the captions.
      reference: uint8[n, H, W, 3], the base's in REFERENCE_STEPS.
    """

    def __init__(self, desk: Desk, base: TextToImage):
        glyphs = desk.glyphs
        self.places = np.unique(np.linspace(0, len(glyphs.captions) - 1, NUM_PICTURES).astype(int))
        self.captions = [glyphs.captions[place] for place in self.places]
        self._gallery = glyphs.kept(glyphs.pixels)
        self.reference = self.draw(base, "dpm-solver", REFERENCE_STEPS)

    def draw(self, pipeline: TextToImage, sampler: str, num_steps: int, guidance_scale: float | None = None):
        """uint8[n, H, W, 3]; the scale is None for the pipeline's own manner."""
        return pipeline.draw(dataclasses.replace(self._request(sampler, num_steps), guidance_scale=guidance_scale))

    def draw_without_error(self, base: TextToImage, num_steps: int) -> np.ndarray:
        """uint8[n, H, W, 3]: what a consistency model without any error would draw: the least that new noises cost.

        From every noisy picture the base goes all the way to the end, in REFERENCE_STEPS of the whole way.
        """
        request, noises = self._request("dpm-solver", REFERENCE_STEPS), np.random.default_rng(0)
        glimpses: list[Glimpse] = []
        pictures = base.draw(request, watch=glimpses.append)
        for left in range(num_steps - 1, 0, -1):
            tokens = np.asarray(glimpses[-1].tokens)
            noise = noises.standard_normal(base.latents_of(tokens, request).shape, np.float32)
            again = dataclasses.replace(request, noise=noise, start=Start(tokens, left / num_steps))
            pictures = base.draw(again, watch=glimpses.append)
        return pictures

    def _request(self, sampler: str, num_steps: int) -> Request:
        seeds = [int(place) for place in self.places]
        return Request(self.captions, seed=seeds, sampler=sampler, num_steps=num_steps, batch_size=len(seeds))

    def figures(self, pictures: np.ndarray) -> tuple[float, float]:
        """Retrieval@1 among all glyphs; and how far the pictures are from the reference: the root of the mean squared
        difference of a picture's pixels, of 255, in the mean."""
        found = retrieval_at_1(pictures.astype(np.float32), self._gallery.astype(np.float32), self.places)
        squares = np.square(pictures.astype(np.float64) - self.reference)
        return found, float(np.sqrt(squares.mean(axis=(1, 2, 3))).mean())


def run(desk: Desk) -> Result:
    workdir = desk.train("lcm", *TRAINING)
    base, student = desk.pipeline(), desk.pipeline(workdir)
    drawn = Drawn(desk, base)
    lines: dict[str, dict[int, tuple[float, float]]] = {}
    shown: dict[str, np.ndarray] = {}
    few = tuple(n for n in STEPS if n <= 8)
    for name, pipeline, sampler, steps, scale in [
        *((sampler, base, sampler, STEPS, None) for sampler in SAMPLERS),
        # What the sampler alone does.
        ("lcm, not distilled", base, "lcm", few, base.parts.guidance_scale),
        ("lcm, distilled", student, "lcm", few, None),
    ]:
        lines[name] = {}
        for num_steps in steps:
            pictures = drawn.draw(pipeline, sampler, num_steps, scale)
            lines[name][num_steps] = drawn.figures(pictures)
            shown[f"{name} {num_steps}"] = pictures
            print(f"{name}, {num_steps} step(s): retrieval@1 {lines[name][num_steps][0]:.3f}", flush=True)
    lines["without error"] = {n: drawn.figures(drawn.draw_without_error(base, n)) for n in few}
    own, distilled = lines["dpm-solver"], lines["lcm, distilled"]
    figures = {"pictures": float(len(drawn.places)), "lcm_in_1_step_retrieval": distilled[1][0]}
    for n in (1, 2, 4):
        figures[f"lcm_in_{n}_steps_distance_of_the_models_own_share"] = distilled[n][1] / own[n][1]
    order = np.linspace(0, len(drawn.places) - 1, NUM_SHOWN).astype(int)
    columns = (drawn.reference, shown["dpm-solver 1"], shown["lcm, distilled 1"], shown["lcm, distilled 4"])
    entries = [([enlarged(column[i]) for column in columns], drawn.captions[i]) for i in dict.fromkeys(order)]
    heading = f"{REFERENCE_STEPS} steps | 1 step | distilled: 1 | 4 steps"
    return Result(
        table(lines),
        figures,
        {
            "few_steps": labelled_grid(entries, columns=3, heading=heading),
            "few_steps_curves": lines_picture(
                "steps",
                {
                    "retrieval@1": {name: {n: value[0] for n, value in line.items()} for name, line in lines.items()},
                    f"distance from {REFERENCE_STEPS} steps": {
                        name: {n: value[1] for n, value in line.items()} for name, line in lines.items()
                    },
                },
            ),
        },
    )


def table(lines: Mapping[str, Mapping[int, tuple[float, float]]]) -> Sequence[Mapping[str, str | int | float]]:
    """A row for each way of drawing: retrieval@1 and distance in each number of steps."""
    return [
        {"retrieval@1, distance": name}
        | {f"{n} step{'s' * (n > 1)}": f"{line[n][0]:.2f}, {line[n][1]:.1f}" if n in line else "" for n in STEPS}
        for name, line in lines.items()
    ]


CHAPTER = Chapter("few_steps", "Few steps: latent consistency distillation", run)
