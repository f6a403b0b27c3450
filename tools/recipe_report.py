"""What the recipe in miniature came to: `tools.recipe`'s table and pictures, from its finished runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import build_model, target_of
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.evaluators.drawings import Drawings, same_size
from pixart_jax.figures.images import labelled_grid, save_png, to_uint8
from pixart_jax.files import write_atomically
from pixart_jax.models.params import abstract_params, apply_of
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.program import make_sample_fn
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.record import read_run

from .recipe_arms import Run

# Held-out captions in samples.png.
NUM_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known of a finished run.

    Attributes:
      name, about: the arm's.
      large: of double resolution, so that its losses compare with its like only.
      num_images: seen in training, not counting what it started from.
      flops: likewise.
      total_flops: with those of everything that it started from.
      images_per_second: the median of what was logged, which another job for a while does not change.
      num_parameters, memory_bytes: of the model, and of its training step by the compiler.
      evaluations: (step, held-out loss), in order.
      retrieval, right_emoji, right_ground: of held-out captions, the share whose picture is nearest to its own among
        all pictures of its size, to one of the same emoji, to one on the same ground; None without captions.
      pictures: of the first held-out captions, uint8[h, w, 3] each.
    """

    name: str
    about: str
    large: bool
    num_images: int
    flops: float
    total_flops: float
    images_per_second: float
    num_parameters: int
    memory_bytes: int
    evaluations: list[tuple[int, float]]
    retrieval: float | None
    right_emoji: float | None
    right_ground: float | None
    pictures: list[np.ndarray]


def report(runs: Sequence[Run], data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes recipe.md, recipe.png, samples_small.png and samples_large.png into `workdir`.

    Args:
      runs: all finished.
      data: what `tools.make_recipe_data` made.
    """
    flops: dict[str, float] = {}
    for run in runs:
        flops[run.arm.name] = run.flops + (flops[run.arm.after] if run.arm.after else 0.0)
    results = [result(run, flops[run.arm.name], data) for run in runs]
    text = table(results)
    write_atomically(workdir / "recipe.md", lambda file: file.write(text.encode()))
    print(text)
    loss_png(workdir / "recipe.png", results)
    save_png(workdir / "samples_small.png", samples([r for r in results if not r.large], data / "held_out"))
    save_png(workdir / "samples_large.png", samples([r for r in results if r.large], data / "large_held_out"))


def result(run: Run, total_flops: float, data: pathlib.Path) -> Result:
    """Reads a run's metrics, and draws the held-out captions with its averaged weights."""
    rows, evaluations = (read_lines(run.workdir / name) for name in ("metrics.jsonl", "eval.jsonl"))
    rates = [row["images_per_second"] for row in rows]
    recorded = read_run(run.workdir)
    config = run.config
    large = run.arm.stage == "stage3"
    drawn: dict[str, Any] = dict.fromkeys(("retrieval", "right_emoji", "right_ground")) | {"pictures": []}
    if not config.model.num_classes:
        held_out = HeldOutPictures(config, data, large)
        drawn = held_out(Checkpoints(run.workdir, read_only=True).restore_params(held_out.abstract))
    return Result(
        name=run.arm.name,
        about=run.arm.about,
        large=large,
        num_images=config.train.num_steps * config.data.batch_size,
        flops=run.flops,
        total_flops=total_flops,
        images_per_second=float(np.median(rates)),
        num_parameters=recorded["num_parameters"],
        memory_bytes=recorded["argument_bytes"] + recorded["scratch_bytes"],
        evaluations=[(row["step"], row["eval_loss"]) for row in evaluations],
        **drawn,
    )


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a finished run's JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class HeldOutPictures:
    """Draws every held-out caption with a model's weights, and says what each picture is nearest to among all of its
    size: compiled once for all weights of a config's model.

    Args:
      config: of the run.
      data: what `tools.make_recipe_data` made.
      large: the pictures of double resolution.
    """

    def __init__(self, config, data: pathlib.Path, large: bool):
        names = ("large_held_out", "large") if large else ("held_out", "dense")
        self._held_out, training = (ShardReader(data / name) for name in names)
        self.model = build_model(config)
        mesh = make_mesh(devices=jax.devices()[:1])
        self.abstract = abstract_params(self.model, mesh)
        decode = load_autoencoder(data / names[0], self._held_out.manifest).decode
        target = target_of(config)
        schedule = target.schedule(config.sample.sampler)
        sampler = build_sampler(config.sample.sampler, schedule, config.sample.num_steps)
        self._drawings = Drawings(
            samples=self._held_out,
            manifest=self._held_out.manifest,
            decode=decode,
            spec=dataclasses.replace(batch_spec(config), align_dim=0),
            sample_fn=make_sample_fn(target.fit(apply_of(self.model), schedule), schedule, sampler),
            guidance_scale=config.sample.guidance_scale,
            seed=config.seed,
            batch_size=config.sample.num_images,
            mesh=mesh,
        )
        gallery = [reader[i] for reader in (self._held_out, training) for i in range(len(reader))]
        self._same_size = []
        for bucket in {sample.bucket for sample in gallery}:
            own = [i for i in range(len(self._held_out)) if self._held_out[i].bucket == bucket]
            if own:
                same = [sample for sample in gallery if sample.bucket == bucket]
                references = np.stack([decode(s.latent_mean[None].astype(np.float32))[0] for s in same])
                self._same_size.append((own, same, references))

    def __call__(self, params) -> dict[str, Any]:
        """`Result`'s retrieval, right_emoji, right_ground and pictures."""
        pictures = self._drawings.draw(params, np.arange(len(self._held_out)))
        right: dict[str, list[bool]] = {"retrieval": [], "right_emoji": [], "right_ground": []}
        for own, same, references in self._same_size:
            nearest = nearest_pictures(np.stack([pictures[i] for i in own]), references)
            for i, found in zip(own, nearest, strict=True):
                sample = self._held_out[i]
                emoji, ground, _ = sample.key.split("-")
                right["retrieval"].append(same[found].caption == sample.caption)
                right["right_emoji"].append(same[found].key.split("-")[0] == emoji)
                right["right_ground"].append(same[found].key.split("-")[1] == ground)
        shown = np.linspace(0, len(self._held_out) - 1, NUM_SHOWN).astype(int)
        return {name: float(np.mean(values)) for name, values in right.items()} | {
            "pictures": [to_uint8(pictures[i]) for i in shown]
        }


def nearest_pictures(generated: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """i[n]: for each of f32[n, H, W, 3], which of f32[m, H, W, 3] is nearest by pixel distance."""
    flat, references = (x.reshape(len(x), -1).astype(np.float64) for x in (generated, gallery))
    distance = np.sum(references**2, axis=1) - 2 * flat @ references.T
    return distance.argmin(axis=1)


def table(results: Sequence[Result]) -> str:
    """Markdown."""
    head = (
        "run | images | TFLOP | with what it started from | held-out loss | retrieval@1 | right emoji | right ground | "
        "images/s | parameters | memory"
    )
    lines = [f"| {head} |", "|" + " --- |" * len(head.split(" | "))]
    for r in results:
        shares = ["–" if x is None else f"{x:.2f}" for x in (r.retrieval, r.right_emoji, r.right_ground)]
        cells = [
            r.about,
            f"{r.num_images:,}",
            f"{r.flops / 1e12:.1f}",
            f"{r.total_flops / 1e12:.1f}",
            f"{r.evaluations[-1][1]:.4f}",
            *shares,
            f"{r.images_per_second:.0f}",
            f"{r.num_parameters / 1e6:.2f} M",
            f"{r.memory_bytes / 2**20:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def loss_png(path: pathlib.Path, results: Sequence[Result]) -> None:
    """Held-out loss against compute, with that of what a run started from; a panel for each resolution."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), dpi=100, layout="constrained")
    for axes, large in zip(figure.subplots(1, 2), (False, True), strict=True):
        for r in results:
            if r.large != large or r.retrieval is None:
                continue
            last = r.evaluations[-1][0]
            compute = [(r.total_flops - r.flops + r.flops * step / last) / 1e12 for step, _ in r.evaluations]
            axes.plot(compute, [loss for _, loss in r.evaluations], marker=".", label=r.about)
        axes.set_title("double resolution, seven aspect ratios" if large else "64 px")
        axes.set_xlabel("model TFLOP of training, with those of earlier stages")
        axes.set_ylabel("held-out loss")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    write_atomically(path, FigureCanvasAgg(figure).print_png)


def samples(results: Sequence[Result], held_out: pathlib.Path) -> np.ndarray:
    """uint8[H, W, 3]: for each of some held-out captions, the real picture and then that of each result."""
    reader = ShardReader(held_out)
    decode = load_autoencoder(held_out, reader.manifest).decode
    shown = [reader[int(i)] for i in np.linspace(0, len(reader) - 1, NUM_SHOWN).astype(int)]
    rows = [[to_uint8(decode(s.latent_mean[None].astype(np.float32))[0])] for s in shown]
    for i, row in enumerate(rows):
        row += [r.pictures[i] for r in results if r.pictures]
    tiles = same_size([np.concatenate(same_size(row), axis=1) for row in rows])
    captions = [sample.caption for sample in shown]
    captions[0] += f" (real, {', '.join(r.name for r in results if r.pictures)})"
    return labelled_grid([(tile[None], caption) for tile, caption in zip(tiles, captions, strict=True)], columns=2)
