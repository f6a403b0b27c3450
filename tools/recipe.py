"""The recipe in miniature, against what it is said to be better than, and what makes it cheaper; tables and pictures.

    python -m tools.make_recipe_data --out data/recipe
    python -m tools.recipe --data data/recipe --workdir runs/recipe        # all together: make recipe
    python -m tools.make_recipe_data --out data/recipe --align-weights FILE
    python -m tools.recipe --compare savings --data data/recipe --workdir runs/cheap        # make cheap

Trains each arm, one after the other; what is finished stays as it is, and what was interrupted goes on. Of the three
stages recipe.md (the table), recipe.png (held-out loss against compute), samples_small.png and samples_large.png (the
same held-out captions drawn by each) are written into the workdir, which docs/recipe.md is about; of the savings
cheap.md and cheap.png, for docs/cheap.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from pixart_jax.commands import GOES_ON, command, path_argument, tool, with_commands
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable
from pixart_jax.files.locks import hold
from pixart_jax.main import log_the_run
from pixart_jax.training.loop import train_and_evaluate

from . import recipe_report, savings_report
from .make_recipe_data import ALIGNED
from .recipe_arms import SAVINGS, STAGES, Arm, Run, plan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is trained, and what is written of it once it is."""

    arms: Sequence[Arm]
    report: Callable[[Sequence[Run], pathlib.Path, pathlib.Path], None]


COMPARISONS = {
    "stages": Comparison(STAGES, recipe_report.report),
    "savings": Comparison(SAVINGS, savings_report.report),
}


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
    parser.add_argument("--compare", choices=COMPARISONS, default="stages", help="(default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a change of every arm's config, to try things"
    )
    args = parser.parse_args(argv)
    log_the_run()
    if not (args.data / "recipe.json").exists():
        raise InputError(f"{args.data} holds no data; {command('make_recipe_data')} --out {args.data}")
    comparison = COMPARISONS[args.compare]
    data, workdir = args.data.absolute(), args.workdir.absolute()
    runs = plan(comparison.arms, data, workdir, args.set)
    if any(run.config.align.weight for run in runs.values()) and not (data / ALIGNED).exists():
        raise InputError(
            f"{data} has no features to align with; {command('make_recipe_data')} --out {args.data} "
            "--align-weights FILE"
        )
    check_writable(workdir, "--workdir")
    begin = time.perf_counter()
    workdir.mkdir(parents=True, exist_ok=True)
    with hold(workdir / ".lock", f"--workdir {workdir}"):
        train_all(list(runs.values()))
        minutes = (time.perf_counter() - begin) / 60
        print(f"[100%] trained in {minutes:.1f} min; drawing held-out captions", flush=True)
        comparison.report(list(runs.values()), data, workdir)
    print(f"{workdir} has the table and its pictures, in {(time.perf_counter() - begin) / 60:.1f} min", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
