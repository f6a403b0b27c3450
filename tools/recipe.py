"""The three-stage recipe in miniature, against what it is said to be better than; a table and two pictures of it.

    python -m tools.make_recipe_data --out data/recipe
    python -m tools.recipe --data data/recipe --workdir runs/recipe        # both together: make recipe

Trains each of ARMS, one after the other; what is finished stays as it is, and what was interrupted goes on. Writes
recipe.md (the table), recipe.png (held-out loss against compute), samples_small.png and samples_large.png (the same
held-out captions drawn by each) into the workdir. docs/recipe.md says what came of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

from pixart_jax.commands import GOES_ON, command, path_argument, tool, with_commands
from pixart_jax.config import ConfigDict, read_config_file
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable
from pixart_jax.files.locks import hold
from pixart_jax.main import log_the_run
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program

from .bench.train import synthetic_batch
from .cost import require_count
from .recipe_report import report


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
      name: of its workdir.
      about: what it is, for the table.
      stage: its config is configs/mini_{stage}.py.
      after: the arm whose weights it starts from, or None.
      settings: further changes of the config.
      same_compute_as: arms whose FLOPs together it is given; None leaves the config's number of steps.
    """

    name: str
    about: str
    stage: str
    after: str | None = None
    settings: tuple[str, ...] = ()
    same_compute_as: tuple[str, ...] = ()


ARMS = (
    Arm("stage1", "stage 1: classes", "stage1"),
    Arm("stage2", "stage 2: re-parameterised, dense captions", "stage2", "stage1"),
    Arm("full_adaln", "stage 2 with full adaLN", "stage2", "stage1", ("model.adaln=full",)),
    Arm("no_reparam", "stage 2 without re-parameterisation", "stage2", "stage1", ("init.reparameterize=none",)),
    Arm("terse", "stage 2 on terse captions", "stage2", "stage1", ("data.source={data}/terse",)),
    Arm("scratch_small", "from scratch, compute of stages 1 + 2", "stage2", same_compute_as=("stage1", "stage2")),
    Arm("stage3", "stage 3: double resolution, seven ratios", "stage3", "stage2"),
    Arm(
        "scratch_large",
        "from scratch, compute of all three",
        "stage3",
        same_compute_as=("stage1", "stage2", "stage3"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """An arm with its config, and the model FLOPs of one of its steps."""

    arm: Arm
    workdir: pathlib.Path
    config: ConfigDict
    step_flops: float

    @property
    def flops(self) -> float:
        """Of this arm alone, without what it started from."""
        return self.config.train.num_steps * self.step_flops


def plan(data: pathlib.Path, workdir: pathlib.Path, extra: Sequence[str]) -> dict[str, Run]:
    """Every arm's settings. `extra` settings come before an arm's own and go to all of them."""
    runs: dict[str, Run] = {}
    for arm in ARMS:
        large = arm.stage == "stage3"
        settings = [
            f"data.source={data}/{'large' if large else 'dense'}",
            f"eval.source={data}/{'large_held_out' if large else 'held_out'}",
            *extra,
            *(setting.format(data=data) for setting in arm.settings),
        ]
        if arm.stage != "stage1":
            settings.append(f"init_from={workdir / arm.after if arm.after else ''}")
        config = read_config(arm.stage, settings)
        flops = config_step_flops(config)
        if arm.same_compute_as:
            config.train.num_steps = max(1, round(sum(runs[name].flops for name in arm.same_compute_as) / flops))
        runs[arm.name] = Run(arm, workdir / arm.name, config, flops)
    return runs


def read_config(stage: str, settings: Sequence[str]):
    return read_config_file(f"mini_{stage}", [f"--config.{setting}" for setting in settings])


def config_step_flops(config) -> float:
    """Model FLOPs of one training step of a config, by the compiler's count."""
    return require_count(Program(config, None).flops(synthetic_batch(config)))


def train_all(runs: Sequence[Run]) -> None:
    """Each run to its end, with a line that says how much of all is done."""
    total, done = sum(run.flops for run in runs), 0.0
    for run in runs:
        print(f"[{done / total:4.0%}] {run.arm.name}: {run.config.train.num_steps} steps, {run.arm.about}", flush=True)
        train_and_evaluate(run.config, str(run.workdir))
        done += run.flops


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=path_argument, help="what tools.make_recipe_data made")
    parser.add_argument("--workdir", required=True, type=path_argument, help="for the runs, the table and the pictures")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a change of every arm's config, to try things"
    )
    args = parser.parse_args(argv)
    log_the_run()
    try:
        if not (args.data / "recipe.json").exists():
            raise InputError(f"{args.data} holds no data; {command('make_recipe_data')} --out {args.data}")
        data, workdir = args.data.absolute(), args.workdir.absolute()
        runs = plan(data, workdir, args.set)
        check_writable(workdir, "--workdir")
        begin = time.perf_counter()
        workdir.mkdir(parents=True, exist_ok=True)
        with hold(workdir / ".lock", f"--workdir {workdir}"):
            train_all(list(runs.values()))
            minutes = (time.perf_counter() - begin) / 60
            print(f"[100%] trained in {minutes:.1f} min; drawing held-out captions", flush=True)
            report(list(runs.values()), data, workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{workdir}/recipe.md and its pictures, in {(time.perf_counter() - begin) / 60:.1f} min", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
