"""What `tools.recipe` trains: the arms of its two comparisons, and the run that an arm is on some data."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from pixart_jax.config import ConfigDict, flatten, phases, read_config_file
from pixart_jax.training.program import Program

from .bench.train import training_batch
from .cost import require_count


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
      name: of its workdir.
      about: what it is, for the table; arms of one comparison that differ in their seed alone have it in common.
      stage: its config is configs/mini_{stage}.py.
      after: the arm whose weights it starts from, or None.
      size: changes of the config that --set may change again.
      settings: further changes of the config.
      same_compute_as: arms whose FLOPs together it is given; None leaves the config's number of steps.
    """

    name: str
    about: str
    stage: str
    after: str | None = None
    size: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    same_compute_as: tuple[str, ...] = ()


# The paper's three stages, each beside what it is said to be better than (docs/recipe.md).
STAGES = (
    Arm("stage1", "stage 1: classes", "stage1"),
    Arm("stage2", "stage 2: re-parameterised, dense captions", "stage2", "stage1"),
    Arm("full_adaln", "stage 2 with full adaLN", "stage2", "stage1", settings=("model.adaln=full",)),
    Arm(
        "no_reparam",
        "stage 2 without re-parameterisation",
        "stage2",
        "stage1",
        settings=("init.reparameterize=none",),
    ),
    Arm("terse", "stage 2 on terse captions", "stage2", "stage1", settings=("data.source={data}/terse",)),
    Arm("scratch_small", "from scratch, compute of stages 1 + 2", "stage2", same_compute_as=("stage1", "stage2")),
    Arm("stage3", "stage 3: double resolution, seven ratios", "stage3", "stage2"),
    Arm(
        "scratch_large",
        "from scratch, compute of all three",
        "stage3",
        same_compute_as=("stage1", "stage2", "stage3"),
    ),
)

# What makes training cheaper (docs/cheap.md), each from scratch at the papers' settings' compute.
SEEDS = (0, 1, 2)
# A constant learning rate, so that each point of a curve is a run of that length, but for its average.
_SHORT = (
    *("model.hidden_size=128", "model.num_heads=4", "optimizer.schedule=constant", "optimizer.warmup_steps=50"),
    *("train.num_steps=300", "train.checkpoint_every=150", "train.keep_checkpoints=100", "eval.every=50"),
    # The best of those tried by hand in 400 steps, with AdamW as with Muon and of flow (docs/cheap.md).
    "optimizer.learning_rate=4e-3",
    "align.width=128",
)
_ROUTE = ("model.route.ratio=0.5", "model.route.first=1", "model.route.last=-2", "model.route.until=0.9")
_ALIGN = ("data.source={data}/aligned", "align.weight=0.5", "align.block=1", "align.dim=1280")
_MUON = ("optimizer.name=muon",)
_FLOW = ("diffusion.prediction=flow", "model.learn_sigma=False")
PAPERS = "the papers' settings"
_SAVINGS = {
    "papers": (PAPERS, ()),
    "route": ("token routing", _ROUTE),
    "align": ("representation alignment", _ALIGN),
    "muon": ("Muon", _MUON),
    "flow": ("flow", _FLOW),
    "together": ("all four", (*_ROUTE, *_ALIGN, *_MUON, *_FLOW)),
}
SAVINGS = tuple(
    Arm(
        f"{name}_{seed}",
        about,
        "stage2",
        size=_SHORT,
        settings=(*settings, f"seed={seed}"),
        same_compute_as=() if name == "papers" else ("papers_0",),
    )
    for name, (about, settings) in _SAVINGS.items()
    for seed in SEEDS
)


@dataclasses.dataclass(frozen=True)
class Run:
    """An arm with its config.

    Attributes:
      part_flops: of one step, the model's, in each of the run's parts (`config.phases`).
    """

    arm: Arm
    workdir: pathlib.Path
    config: ConfigDict
    part_flops: tuple[float, ...]

    @property
    def flops(self) -> float:
        """Of this arm alone, without what it started from."""
        return self.flops_until(self.config.train.num_steps)

    def flops_until(self, step: int) -> float:
        """Of its first `step` steps."""
        begins = [done for done, _ in phases(self.config)]
        ends = [*begins[1:], self.config.train.num_steps]
        spans = (max(0, min(step, end) - begin) for begin, end in zip(begins, ends, strict=True))
        return sum(span * flops for span, flops in zip(spans, self.part_flops, strict=True))


def plan(arms: Sequence[Arm], data: pathlib.Path, workdir: pathlib.Path, extra: Sequence[str]) -> dict[str, Run]:
    """Every arm's run. `extra` settings come before an arm's own, but for its size, and go to all."""
    runs: dict[str, Run] = {}
    count = _StepFlops()
    for arm in arms:
        large = arm.stage == "stage3"
        settings = [
            f"data.source={data}/{'large' if large else 'dense'}",
            f"eval.source={data}/{'large_held_out' if large else 'held_out'}",
            *arm.size,
            *extra,
            *(setting.format(data=data) for setting in arm.settings),
        ]
        if arm.stage != "stage1":
            settings.append(f"init_from={workdir / arm.after if arm.after else ''}")
        config = read_config_file(f"mini_{arm.stage}", [f"--config.{setting}" for setting in settings])
        run = Run(arm, workdir / arm.name, config, count(config))
        if arm.same_compute_as:
            wanted = sum(runs[name].flops for name in arm.same_compute_as)
            config.train.num_steps = max(1, round(wanted / (run.flops / config.train.num_steps)))
            run = dataclasses.replace(run, part_flops=count(config))
        runs[arm.name] = run
    return runs


class _StepFlops:
    """Model FLOPs of one training step of each part of a config, by the compiler's count; counted once for all that
    differ in what is no part of the model alone."""

    def __init__(self):
        self._known: dict[tuple, float] = {}

    def __call__(self, config: ConfigDict) -> tuple[float, ...]:
        return tuple(self._of(own) for _, own in phases(config))

    def _of(self, config: ConfigDict) -> float:
        sections = ("model", "align", "diffusion", "objective", "adapter", "data.batch_size")
        key = tuple((name, value) for name, value in flatten(config).items() if name.startswith(sections))
        if key not in self._known:
            self._known[key] = require_count(Program(config, None).flops(training_batch(config)))
        return self._known[key]
