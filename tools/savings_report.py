"""What the settings that make training cheaper came to: `tools.recipe --compare savings`' table and picture.

The common measure is the held-out error of eps at the same noise levels, which a model of any target has
(`samplers.predictions`), of the averaged weights. Compute is the model's forward and backward pass, by the compiler's
count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence

import flax
import numpy as np

from pixart_jax.config import flatten
from pixart_jax.conversion.runs import load_run
from pixart_jax.files import write_atomically

from .recipe_arms import PAPERS, Run
from .recipe_report import HeldOutPictures, read_lines

Curve = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is known of a finished run.

    Attributes:
      about, seed: the arm's.
      num_steps, flops: of training, the model's.
      losses: (FLOPs, held-out loss), from before the first step to the end.
      retrievals: (FLOPs, retrieval@1) of held-out captions among all pictures, at each checkpoint.
    """

    about: str
    seed: int
    num_steps: int
    flops: float
    losses: Curve
    retrievals: Curve


def report(runs: Sequence[Run], data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes cheap.md and cheap.png into `workdir`.

    Args:
      runs: all finished.
      data: what `tools.make_recipe_data` made.
    """
    drawers: dict[tuple, HeldOutPictures] = {}
    results = [trained(run, data, drawers) for run in runs]
    text = table(results)
    write_atomically(workdir / "cheap.md", lambda file: file.write(text.encode()))
    print(text)
    curves_png(workdir / "cheap.png", results)


def trained(run: Run, data: pathlib.Path, drawers: dict[tuple, HeldOutPictures]) -> Trained:
    """Reads a run's held-out losses, and draws the held-out captions with the averaged weights of each checkpoint.

    Args:
      drawers: by what of a config they depend on; those that are missing are added. All draw from the same noise.
    """
    config = run.config
    kind = tuple((k, v) for k, v in flatten(config).items() if k.startswith(("diffusion.", "model.learn_sigma")))
    if kind not in drawers:
        drawers[kind] = HeldOutPictures(config, data, large=False)
    retrievals = []
    for step in sorted(int(path.name) for path in (run.workdir / "checkpoints").iterdir() if path.name.isdigit()):
        weights = load_run(run.workdir, ema=True, step=step)
        params = flax.traverse_util.unflatten_dict({path: weights.read(path) for path in weights.paths}, sep="/")
        retrievals.append((run.flops_until(step), drawers[kind](params)["retrieval"]))
    return Trained(
        about=run.arm.about,
        seed=config.seed,
        num_steps=config.train.num_steps,
        flops=run.flops,
        losses=[(run.flops_until(row["step"]), row["eval_loss"]) for row in read_lines(run.workdir / "eval.jsonl")],
        retrievals=retrievals,
    )


def compute_saved(papers: Curve, other: Curve) -> float:
    """How many times less compute `other` takes to the loss that both reach: the worse of the two ends' losses.

    Below 1 it takes more. Between two evaluations the loss' logarithm is taken to be linear in that of compute.
    """
    loss = max(papers[-1][1], other[-1][1])
    return flops_to(papers, loss) / flops_to(other, loss)


def flops_to(curve: Curve, loss: float) -> float:
    """FLOPs at which a curve is at or below a loss for the first time; it must come there."""
    before, after = next((a, b) for a, b in itertools.pairwise(curve) if b[1] <= loss)
    if before[0] == 0:
        # Zero has no logarithm: a straight line, of the first stretch alone.
        return after[0] * (before[1] - loss) / (before[1] - after[1])
    share = math.log(before[1] / loss) / math.log(before[1] / after[1])
    return before[0] * (after[0] / before[0]) ** share


def table(results: Sequence[Trained]) -> str:
    """Markdown; each figure is the mean over the seeds, and the least and the most of them."""
    head = "setting | steps | TFLOP | held-out loss | retrieval@1 | compute saved at equal loss"
    lines = [f"| {head} |", "|" + " --- |" * len(head.split(" | "))]
    papers = {r.seed: r for r in results if r.about == PAPERS}
    for about, own in by_setting(results):
        saved = [compute_saved(papers[r.seed].losses, r.losses) for r in own if r.seed in papers]
        cells = [
            about,
            f"{own[0].num_steps}",
            f"{own[0].flops / 1e12:.2f}",
            spread([r.losses[-1][1] for r in own], 4),
            spread([r.retrievals[-1][1] for r in own], 2),
            "1" if about == PAPERS else spread(saved, 2) if saved else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_setting(results: Sequence[Trained]) -> Iterator[tuple[str, list[Trained]]]:
    for about in dict.fromkeys(r.about for r in results):
        yield about, [r for r in results if r.about == about]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean (least to most)."""
    mean, least, most = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def curves_png(path: pathlib.Path, results: Sequence[Trained]) -> None:
    """Held-out loss and retrieval against compute: the mean over the seeds, between the least and the most of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, what, name in zip(panels, ("losses", "retrievals"), ("held-out loss", "retrieval@1"), strict=True):
        for about, own in by_setting(results):
            # Without what comes before the first step, which is alike.
            curves = np.array([[point for point in getattr(r, what) if point[0]] for r in own])
            compute, values = curves[0, :, 0] / 1e12, curves[:, :, 1]
            (line,) = axes.plot(compute, values.mean(0), marker=".", label=about)
            axes.fill_between(compute, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
        axes.set_xlabel("model TFLOP of training")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    panels[0].set_yscale("log")
    write_atomically(path, FigureCanvasAgg(figure).print_png)
