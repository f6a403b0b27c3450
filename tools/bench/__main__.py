"""Benchmarks. Each prints one JSON line per figure and runs on any device.

python -m tools.bench --what=train --config=configs/quickstart.py [--config.model.depth=12 ...] [--steps=20]
python -m tools.bench --what=convert [--size=XL/2]
python -m tools.bench --what=data [--resolution=256]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

import jax

from pixart_jax.errors import InputError

# A module of this package each, imported when asked for: an accelerator image lacks what some of them need.
BENCHMARKS = ("train", "convert", "data")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # -h goes on to the benchmark
    )
    parser.add_argument("--what", choices=BENCHMARKS, required=True)
    args, rest = parser.parse_known_args(argv)
    device = jax.devices()[0]
    where = {"device": device.device_kind, "num_devices": jax.device_count(), "jax": jax.__version__}
    try:
        for figures in importlib.import_module(f"tools.bench.{args.what}").run(rest):
            print(json.dumps({"what": args.what, **figures, **where}), flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
