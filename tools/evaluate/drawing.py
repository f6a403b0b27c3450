"""What a checkpoint is to draw for an evaluation: prompts, seeds and settings, one list for each guidance scale."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_jax.data.prompt_lists import captions_of_shards, chosen, prompts_hash, read_prompt_list, seed_of
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.errors import InputError
from pixart_jax.generation.drawn_pictures import DrawnPictures
from pixart_jax.generation.picture_lists import PictureList, Wanted
from pixart_jax.generation.request import Request

from ..drawing_options import open_pipeline, read_adapters


class Prompts:
    """The prompts of an evaluation.

    Attributes:
      places: of the prompts in their list, rising.
      texts: of each.
      about: where they are from, for the result.
    """

    def __init__(self, places: Sequence[int], texts: Sequence[str], source: pathlib.Path, total: int, seed: int):
        self.places, self.texts, self._seed = places, texts, seed
        self.about = {"source": str(source), "total": total, "sha256": prompts_hash(texts), "seed": seed}

    def wanted(self) -> list[Wanted]:
        """Pictures of them, each with a noise of its own, which is the same whatever they are drawn with."""
        return [
            Wanted(f"{place:06d}.png", text, seed_of(self._seed, place))
            for place, text in zip(self.places, self.texts, strict=True)
        ]


def read_prompts(args: argparse.Namespace) -> Prompts:
    """Raises InputError if there are none, or not as many as are wanted."""
    if args.prompts_from:
        samples = ShardReader(args.prompts_from)
        places = chosen(len(samples), args.num_pictures)
        texts = captions_of_shards(samples, places, f"--prompts-from {args.prompts_from}")
        return Prompts(places, texts, args.prompts_from, len(samples), args.seed)
    found = read_prompt_list(args.prompts)
    places = chosen(len(found), args.num_pictures)
    return Prompts(places, [found[place] for place in places], args.prompts, len(found), args.seed)


def open_drawings(args: argparse.Namespace, prompts: Prompts) -> Mapping[str, DrawnPictures]:
    """The pictures of each guidance scale, by what their folder is called; nothing is drawn yet.

    Raises:
      InputError: there is no such model, or a setting is none.
    """
    scales: Sequence[float | None] = args.guidance_scale or [None]
    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("negative_prompt", "sampler", "num_steps", "size", "aspect_ratio")
    }
    adapters = read_adapters(args, len(prompts.texts))
    # What is wrong with a setting is said before a model is opened.
    requests = [Request("", guidance_scale=scale, batch_size=args.draw_batch_size, **settings) for scale in scales]
    if len({request.guidance_scale for request in requests}) < len(requests):
        raise InputError(f"--guidance-scale {' '.join(map(str, scales))}: name each once")
    pipeline = open_pipeline(args, adapters)
    if adapters.control:
        settings = adapters.control.shape(settings, pipeline)
        requests = [dataclasses.replace(request, aspect_ratio=settings["aspect_ratio"]) for request in requests]
    canvas = requests[0].canvas(pipeline.resolution)
    if canvas.size != pipeline.resolution:
        print(f"drawn at {canvas.size} px; the model was trained at {pipeline.resolution} px", file=sys.stderr)
    first = PictureList.open(
        pipeline,
        prompts.wanted(),
        args.out,
        requests[0],
        per_group=args.pictures_per_unit,
        control=adapters.control,
        about=adapters.about(),
    )
    found = {}
    for request in requests:
        manner = pipeline.manner(request)
        name = f"guidance-{manner.guidance_scale:.10g}" if manner.guidance != "none" else "guidance-none"
        drawing = first.at_guidance(request.guidance_scale, args.out / "pictures" / name)
        found[name] = DrawnPictures(drawing, args.keep_pictures, DrawingLines(name))
    return found


class DrawingLines:
    """Prints what is being done of a group of pictures and how far it is, at most every few seconds."""

    def __init__(self, name: str, every: float = 5.0):
        self._name, self._every, self._printed = name, every, time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if (now := time.perf_counter()) - self._printed >= self._every:
            self._printed = now
            print(f"{self._name}: {stage} {done}/{total} of a unit", file=sys.stderr, flush=True)
