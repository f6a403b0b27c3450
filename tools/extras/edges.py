"""ControlNet: glyphs follow edges that they were never trained together with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pixart_jax.data.canny import canny
from pixart_jax.encoding.edges import CannyEdges
from pixart_jax.figures.images import enlarged, labelled_grid
from pixart_jax.generation.control import control_condition
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request

from .chapter import Chapter, Desk, Result

# Every eighth glyph is not trained on; each of the others in so many poses.
HELD_OUT, NUM_POSES = 8, 16
NUM_SHOWN = 8
# Of base and ControlNet: guidance leads away from the edges towards what the caption usually looks like.
GUIDANCE = 1.5

SETTINGS = (
    "adapter.kind=controlnet", "adapter.controlnet.num_copies=3",
    "optimizer.learning_rate=1e-3", "optimizer.warmup_steps=50", "train.num_steps=1200", "train.ema_decay=0.99",
    "train.checkpoint_every=200", "train.log_every=50",
)  # fmt: skip


def posed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture uint8[size, size, 3] turned, made smaller, moved and perhaps mirrored, on white."""
    size = len(picture)
    angle, scale = np.deg2rad(rng.uniform(-40, 40)), rng.uniform(0.55, 0.95)
    room = 0.5 * (1 - scale) * size
    shift = rng.uniform(-room, room, 2)
    mirror = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    turn[0] *= mirror
    centre = np.full(2, (size - 1) / 2)
    offset = centre - turn @ (centre + shift)
    image = Image.fromarray(picture)
    matrix = (*turn[0], offset[0], *turn[1], offset[1])
    return np.asarray(
        image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(255,) * 3)
    )


def run(desk: Desk) -> Result:
    glyphs, rng, make = desk.glyphs, np.random.default_rng(0), CannyEdges()
    held_out = np.arange(HELD_OUT - 1, len(glyphs.captions), HELD_OUT)
    learnt = np.setdiff1d(np.arange(len(glyphs.captions)), held_out)
    visits = np.repeat(learnt, NUM_POSES)
    pictures = np.stack([posed(glyphs.pixels[i], rng) for i in visits])
    data = glyphs.write(desk.folder / "edges", pictures, glyphs.named(visits), control=make(pictures))
    trained = desk.train("controlnet", f"data.source={data}", *SETTINGS)
    base, controlled = desk.pipeline(), desk.pipeline(trained)

    targets = np.stack([posed(glyphs.pixels[i], rng) for i in held_out])
    captions = glyphs.named(held_out)
    request = Request(captions, seed=held_out.tolist(), guidance_scale=GUIDANCE, batch_size=64)
    without = base.draw(request)
    own = drawn_along(controlled, request, targets)
    others = np.roll(targets, 1, axis=0)
    crossed = drawn_along(controlled, request, others)
    measured = {}
    for name, drawn, asked in (
        ("base, asked for the caption's glyph", without, targets),
        ("ControlNet, asked for the caption's glyph", own, targets),
        ("base, asked for another glyph", without, others),
        ("ControlNet, asked for another glyph", crossed, others),
        ("autoencoder alone: the most there can be", glyphs.kept(targets), targets),
    ):
        measured[name] = agreement(drawn, asked)
    rows: list[dict[str, str | int | float]] = [{"drawn": name, **found} for name, found in measured.items()]
    shown = np.unique(np.linspace(0, len(held_out) - 1, NUM_SHOWN).astype(int))
    edges = make(targets).astype(np.uint8)
    other_edges = make(others).astype(np.uint8)
    entries = [([enlarged(one[i]) for one in (without, edges, own, other_edges, crossed)], captions[i]) for i in shown]
    heading = "base | edges asked for | ControlNet | edges of another glyph | ControlNet"
    return Result(
        rows,
        {
            "glyphs_trained_on": len(learnt),
            "glyphs_held_out": len(held_out),
            **{
                f"times_nearer_{which}": times_nearer(measured, which)
                for which in ("the caption's glyph", "another glyph")
            },
        },
        {"edges": labelled_grid(entries, columns=2, heading=heading)},
    )


def times_nearer(measured: Mapping[str, Mapping[str, float]], which: str) -> float:
    """How many times as far from the edges asked for the base's are as the ControlNet's."""
    base, controlled = (
        measured[f"{name}, asked for {which}"]["pixels between them"] for name in ("base", "ControlNet")
    )
    return base / controlled


def drawn_along(pipeline: TextToImage, request: Request, pictures: np.ndarray) -> np.ndarray:
    """What is drawn along the edges of pictures uint8[n, size, size, 3], likewise."""
    control = control_condition(pipeline, request, list(pictures), CannyEdges())
    return pipeline.draw(dataclasses.replace(request, conditions=control))


def agreement(drawn: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Of Canny's edges of both, means over pictures: what share of each lies within a pixel of the other's, the
    harmonic mean of both shares, and how many pixels lie between an edge of one and the nearest of the other."""
    found = []
    for one, other in zip(drawn, asked, strict=True):
        ours, theirs = np.argwhere(canny(one)), np.argwhere(canny(other))
        if not len(ours) or not len(theirs):
            found.append((0.0, 0.0, 0.0, float(one.shape[0])))
            continue
        away = np.hypot(*(ours[:, None] - theirs[None]).transpose(2, 0, 1))
        from_ours, from_theirs = away.min(axis=1), away.min(axis=0)
        # Corner to corner counts as beside.
        precision, recall = np.mean(from_ours < 1.5), np.mean(from_theirs < 1.5)
        harmonic = 2 * precision * recall / max(precision + recall, 1e-9)
        found.append((precision, recall, harmonic, (from_ours.mean() + from_theirs.mean()) / 2))
    precision, recall, harmonic, distance = np.mean(found, axis=0).tolist()
    return {
        "drawn edges that were asked for": precision,
        "asked for and drawn": recall,
        "F": harmonic,
        "pixels between them": distance,
    }


CHAPTER = Chapter("edges", "Edges: ControlNet", run)
