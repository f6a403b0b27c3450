"""Weights of a run, averaged over a length that is chosen afterwards (EDM2, docs/cheap.md).

python -m tools.average --workdir runs/mine --sigma-rel 0.07 --out models/mine-0.07
python -m tools.average --workdir runs/mine --sigma-rel 0.05 --step 40000 --out models/mine-40000

The run keeps snapshots of two averages (config.average.every); a sum of them is fitted to the one that is wanted. The
length is the standard deviation of the average over the steps so far, as a share of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from pixart_jax.commands import BEGINS_AGAIN, command, path_argument, quieten_libraries, tool, with_commands
from pixart_jax.conversion.averages import average_of_run
from pixart_jax.conversion.publishing import claimed, published
from pixart_jax.conversion.transfer import write_orbax
from pixart_jax.data.shards.manifest import ENCODERS
from pixart_jax.encoding.registry import copy_own_encoders
from pixart_jax.files import refuse_patterns


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    begin = time.perf_counter()
    refuse_patterns(args.out, "--out")
    with claimed(args.out):
        averaged = average_of_run(args.workdir, args.sigma_rel, args.step)
        steps = len({step for step, _ in averaged.kept})
        print(
            f"{args.workdir}: step {averaged.step}, fitted by {len(averaged.kept)} averages of {steps} snapshots; "
            f"the fit lacks {averaged.fit.residual:.2e} of the profile, and multiplies rounding by "
            f"{averaged.fit.gain:.2g}",
            flush=True,
        )
        with published(args.out) as temporary:
            write_orbax(temporary, averaged.weights)
            copy_own_encoders(args.workdir / ENCODERS, temporary / ENCODERS)
    print(f"{args.out}: written in {time.perf_counter() - begin:.1f} s; tools.sample draws with it")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("average"),
        description=with_commands(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=path_argument, required=True, help="of the run")
    parser.add_argument("--sigma-rel", type=float, required=True, help="the length, 0.05 to 0.1 or so")
    parser.add_argument("--step", type=int, help="that the average ends at, of a snapshot (default: the last)")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="must not exist")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
