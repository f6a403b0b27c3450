"""A style LoRA of rank 4: three quarters of the glyphs are learnt in one ink, and the others drawn so."""

from __future__ import annotations

import numpy as np

from pixart_jax.evaluators.retrieval import retrieval_at_1
from pixart_jax.figures.images import enlarged, labelled_grid
from pixart_jax.generation.lora import LoraFile

from .. import convert
from .chapter import Chapter, Desk, Result

# Every fourth glyph is not trained on.
HELD_OUT = 4
SCALES = (0.0, 0.5, 1.0)
NUM_SHOWN = 10
# What black and white become, in RGB: blue ink on cream paper.
_INK, _PAPER = np.array([16.0, 36.0, 120.0]), np.array([252.0, 236.0, 200.0])
_GREY = np.array([0.299, 0.587, 0.114]) / 255  # ITU-R 601-2's luma

SETTINGS = (
    "adapter.kind=lora", "adapter.lora.rank=4", "adapter.lora.alpha=4",
    "optimizer.learning_rate=2e-3", "optimizer.warmup_steps=20", "train.num_steps=800", "data.batch_size=16",
    "train.ema_decay=0.98", "train.checkpoint_every=100", "train.log_every=50",
)  # fmt: skip


def printed(pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8[..., 3] in the style, likewise."""
    light = (pictures @ _GREY)[..., None]
    return np.rint(light * _PAPER + (1 - light) * _INK).astype(np.uint8)


def run(desk: Desk) -> Result:
    glyphs = desk.glyphs
    held_out = np.arange(HELD_OUT - 1, len(glyphs.captions), HELD_OUT)
    learnt = np.setdiff1d(np.arange(len(glyphs.captions)), held_out)
    styled = printed(glyphs.pixels)
    data = glyphs.write(desk.folder / "printed", styled[learnt], glyphs.named(learnt))
    trained = desk.train("lora", f"data.source={data}", *SETTINGS)
    file = desk.folder / "style.safetensors"
    if not file.exists():
        desk.use(convert, trained, file, "--to", "diffusers-lora")
    lora = LoraFile.read(file)
    pipeline = desk.pipeline(adapters=[lora])
    plain_gallery, gallery = glyphs.kept(glyphs.pixels), glyphs.kept(styled)
    captions = glyphs.named(held_out)

    rows: list[dict[str, str | int | float]] = []
    drawn = []
    for scale in SCALES:
        lora.scale = scale
        drawn.append(pipeline(captions, seed=held_out.tolist(), batch_size=64))
        rows.append({"held-out glyphs": f"LoRA x {scale:g}", **_measured(drawn[-1], plain_gallery, gallery, held_out)})
    rows.append(
        {"held-out glyphs": "the style itself", **_measured(gallery[held_out], plain_gallery, gallery, held_out)}
    )
    shown = np.unique(np.linspace(0, len(held_out) - 1, NUM_SHOWN).astype(int))
    entries = [
        ([enlarged(one) for one in (*(pictures[i] for pictures in drawn), gallery[held_out[i]])], captions[i])
        for i in shown
    ]
    heading = " | ".join(["LoRA x 0", *(f"x {scale:g}" for scale in SCALES[1:]), "the style itself"])
    return Result(
        rows,
        {"glyphs_trained_on": len(learnt), "glyphs_held_out": len(held_out), "file_kib": file.stat().st_size / 1024},
        {"style": labelled_grid(entries, columns=2, heading=heading)},
    )


def _measured(drawn: np.ndarray, plain: np.ndarray, styled: np.ndarray, target: np.ndarray) -> dict[str, float]:
    way = styled[target].astype(np.float64) - plain[target]
    gone = np.sum((drawn - plain[target].astype(np.float64)) * way, axis=(1, 2, 3)) / np.sum(way**2, axis=(1, 2, 3))
    return {
        "share of the way from plain to style": float(gone.mean()),
        "colours off the style's, of 255": float(_off_colours(drawn)),
        "retrieval@1 among all in the style": retrieval_at_1(drawn, styled, target),
        "among all plain": retrieval_at_1(drawn, plain, target),
    }


def _off_colours(pictures: np.ndarray) -> float:
    """Root mean square of the distances of pixels from the line of colours between ink and paper."""
    line = (_PAPER - _INK) / np.linalg.norm(_PAPER - _INK)
    offset = pictures - _INK
    return np.sqrt(np.mean(np.sum((offset - (offset @ line)[..., None] * line) ** 2, axis=-1)))


CHAPTER = Chapter("style", "A style: LoRA of rank 4", run)
