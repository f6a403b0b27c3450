"""Benchmarks. Each runs on any device and prints a JSON line per figure to stdout, and the same as a table to stderr;
docs/benchmarks.md says what they measure.

python -m tools.bench --what=train --config=configs/quickstart.py [--config.model.depth=12 ...] [--steps=20]
python -m tools.bench --what=forward --config=configs/stage3_256.py
python -m tools.bench --what=sample --config=configs/stage3_1024.py [--vae=sd]
python -m tools.bench --what=attention [--resolutions=1024]
python -m tools.bench --what=checkpoint --config=configs/stage3_256.py
python -m tools.bench --what=scaling --config=configs/quickstart.py
python -m tools.bench --what=data [--resolution=256]
python -m tools.bench --what=convert [--size=XL/2]
python -m tools.bench --what=encoders
python -m tools.bench --suite=gpu [--minutes=25] --out DIR
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from pixart_jax.commands import BEGINS_AGAIN, command, tool, with_commands
from pixart_jax.errors import InputError

from .rates import where
from .suite import run_suite
from .table import table

# A module of this package each, imported when asked for: an accelerator image lacks what some of them need.
BENCHMARKS = ("train", "forward", "sample", "attention", "checkpoint", "scaling", "data", "convert", "encoders")


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=command("bench"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # -h goes on to the benchmark
    )
    parser.add_argument(
        "--what", choices=BENCHMARKS, required=True, help="with --help: the options of that benchmark (--help)"
    )
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv) and not any(arg.startswith("--what") for arg in argv):
        parser.print_help()
        return 0
    if any(arg.partition("=")[0] == "--suite" for arg in argv):
        return run_suite(argv)
    args, rest = parser.parse_known_args(argv)
    try:
        benchmark = importlib.import_module(f".{args.what}", __package__)
    except ModuleNotFoundError as error:
        raise InputError(f"--what={args.what} needs {error.name}, which is not installed") from error
    rows = []
    for figures in benchmark.run(rest):
        # Devices are looked for only now: a benchmark may have a say in what there are.
        rows.append({"what": args.what, **figures, **where()})
        print(json.dumps(rows[-1]), flush=True)
    print("\n".join(["", *table(rows)]), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
