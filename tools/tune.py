"""Tries block sizes of splash attention, forward and backward, and keeps the best of each shape in a table.

python -m tools.tune --chip=v5e --chip=v6e                          # by the TPU compiler's schedule; needs no TPU
python -m tools.tune --chip=v5e --shapes=1024x1024,4096x128 --write  # queries x keys; into the table that models use

Without a TPU the compiler of libtpu compiles each kernel (pip install "jax[tpu]"), and the bundles of instructions that
it schedules for a step of the kernel's grid, times the steps, are its cycles: what a TPU takes if it never waits for
memory. Copies around the kernels count by the compiler's estimates. Where this machine has a TPU, --measure times them.
Results go to --out as they come, and what is there is not tried again: after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pixart_jax.commands import GOES_ON, command, path_argument, tool, with_commands
from pixart_jax.devices.hardware import HARDWARE
from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.files.locks import own_target
from pixart_jax.files.typed_json import read_bytes
from pixart_jax.models.splash_attention import TABLE_FILE, Blocks, blocks_by_rule, splash_attention

from .aot import ENVIRONMENT
from .aot_cycles import estimate

# Tokens of 256, 512, 1024 px and 2K, with the texts of α and Σ as the kernel has them, and compression by 2.
SHAPES = "256x256,1024x1024,4096x4096,16384x16384,1024x128,4096x128,4096x384,4096x1024,16384x4096"
HEADS, HEAD_DIM = 16, 72
QUERIES, KEYS, AT_ONCE = (512, 1024, 2048), (512, 1024, 2048, 4096), (512, 1024)
_CALLS = 20


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.child:
        print(json.dumps(try_blocks(**json.loads(args.child))))
        return 0
    shapes = [parse_shape(text) for text in args.shapes.split(",")]
    with own_target(args.out, "--out"):
        best = {chip: {shape: tune(chip, *shape, args) for shape in shapes} for chip in args.chip or ["v5e"]}
    if args.write:
        write_table(TABLE_FILE, best)
    return 0


def parse_shape(text: str) -> tuple[int, int]:
    """ "4096x120": queries and keys, as many as attention fills them up to.

    Raises:
      InputError: they are not two positive numbers.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(int(n) for n in match.groups()):
        raise InputError(f"--shapes={text}: must be QUERIESxKEYS, such as 4096x128")
    queries, keys = map(int, match.groups())
    return blocks_by_rule(queries, keys, 2).fill(queries, keys)


def candidates(queries: int, keys: int) -> Iterator[Blocks]:
    """What is tried: first what is taken without a table, then blocks that divide the shape."""
    rule = blocks_by_rule(queries, keys, 2)
    yield rule
    for q in QUERIES:
        for kv in KEYS:
            for at_once in AT_ONCE:
                blocks = Blocks(min(q, queries), min(kv, keys), min(at_once, kv, keys))
                fits = not (queries % blocks.queries or keys % blocks.keys or blocks.keys % blocks.at_once)
                if fits and blocks != rule and blocks.queries * blocks.keys <= 2 * rule.queries * rule.keys:
                    yield blocks


def tune(chip: str, queries: int, keys: int, args: argparse.Namespace) -> Blocks:
    """The fastest blocks of a shape; says all that were tried."""
    results: dict[Blocks, float] = {}
    for blocks in dict.fromkeys(candidates(queries, keys)):
        case = {"chip": chip, "queries": queries, "keys": keys, "blocks": list(blocks), "measure": args.measure}
        found = known(args.out, case) or in_child(case, args)
        results[blocks] = found.get("total") or float("inf")
        said = found.get("failed") or f"{found['total']:,.4g} {found['unit']} (kernels {found['kernels']})"
        print(f"{chip} {queries}x{keys} blocks {tuple(blocks)}: {said}", flush=True)
    return min(results, key=results.__getitem__)


def known(path: pathlib.Path, case: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call found of a case; damaged lines count as not there."""
    for line in read_bytes(path, "name another --out").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("case") == case and isinstance(entry.get("result"), dict):
            return entry["result"]
    return None


def in_child(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Tries blocks in a process of its own, whose compiler writes its schedules to a folder for us."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        environment = {} if case["measure"] else ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags}
        arguments = [sys.executable, "-m", f"{__package__}.tune", f"--child={json.dumps({**case, 'folder': folder})}"]
        try:
            process = subprocess.run(
                arguments, env=os.environ | environment, capture_output=True, text=True, timeout=args.timeout
            )
        except subprocess.TimeoutExpired:
            result: dict[str, Any] = {"failed": f"not compiled in {args.timeout:g} s"}
        else:
            if process.returncode and "vmem" not in process.stderr:
                raise InputError(f"{case}: the compiler failed:\n{process.stderr[-2000:]}")
            last = process.stdout.splitlines()[-1:] or [""]
            result = {"failed": "too much for the vector memory"} if process.returncode else json.loads(last[0])
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"case": case, "result": result}) + "\n")
    return result


def try_blocks(chip: str, queries: int, keys: int, blocks: list[int], measure: bool, folder: str) -> dict[str, Any]:
    """Forward and backward pass of one picture."""
    if measure:
        device = jax.devices()[0]
    else:
        device = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2").devices[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("x",)), P())

    def both(q, k, v, length, d_out):
        kernel = functools.partial(splash_attention, key_length=length, chip=chip, blocks=Blocks(*blocks))
        out, pull = jax.vjp(kernel, q, k, v)
        return out, *pull(d_out)

    shapes: list[tuple[tuple[int, ...], Any]]
    shapes = [((1, n, HEADS, HEAD_DIM), jnp.bfloat16) for n in (queries, keys, keys, queries)]
    shapes.insert(3, ((1,), jnp.int32))
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
    compiled = jax.jit(both).lower(*arguments).compile()
    if measure:
        inputs = [jax.device_put(jnp.ones(*shape), sharding) for shape in shapes]
        jax.block_until_ready(compiled(*inputs))
        begin = time.perf_counter()
        jax.block_until_ready([compiled(*inputs) for _ in range(_CALLS)])
        return {"total": (time.perf_counter() - begin) / _CALLS, "unit": "s", "kernels": "included"}
    kernels = scheduled_cycles(pathlib.Path(folder))
    around = estimate(compiled.as_text() or "").cycles
    return {"total": around + sum(kernels.values()), "unit": "cycles", "kernels": kernels, "around": around}


def scheduled_cycles(folder: pathlib.Path) -> dict[str, int]:
    """Cycles of each kernel of splash attention, from the compiler's last schedules: bundles of all that a step of the
    grid may do, times the steps.

    Blocks that begin or end a row of keys are in every step's count; where all keys are one block they are in every
    step.
    """
    cycles: dict[str, int] = {}
    for path in folder.glob("*splash_mha_*-final_bundles.txt"):
        kind = re.search(r"splash_mha_(fwd|dq|dkv)", path.name)
        text = path.read_text(encoding="utf-8", errors="replace")
        bundles = len(re.findall(r"^ *0x[0-9a-f]+ ", text, re.MULTILINE)) + text.count("\n     0   :")
        ends = [int(count) for count in re.findall(r", (\d+) /\* loop exit test", text)]
        if kind and ends:
            # Two steps more fill and empty the pipeline of copies.
            cycles[kind[1]] = cycles.get(kind[1], 0) + bundles * (max(ends) - 2)
    return cycles


def write_table(path: pathlib.Path, best: dict[str, dict[tuple[int, int], Blocks]]) -> None:
    """Adds the best blocks of each shape, where the rule has others, to what the table has of other shapes."""
    table: dict[str, dict[str, list[int]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for chip, shapes in best.items():
        entries = table.setdefault(chip, {})
        for (queries, keys), blocks in shapes.items():
            entries.pop(f"{queries}x{keys}", None)
            if blocks != blocks_by_rule(queries, keys, 2):
                entries[f"{queries}x{keys}"] = list(blocks)
    text = re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", json.dumps(table, indent=1)) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("tune"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    chips = [name for name, hardware in HARDWARE.items() if hardware.clock]
    parser.add_argument("--chip", action="append", choices=chips, help="may be given again (default: v5e)")
    parser.add_argument("--shapes", default=SHAPES, help="QUERIESxKEYS, with commas between (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="time them on this machine's TPU, a --chip")
    parser.add_argument("--write", action="store_true", help=f"the best into {TABLE_FILE.name}, which the models read")
    parser.add_argument(
        "--out", type=path_argument, default=pathlib.Path("runs/tune.jsonl"), help="results (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each (default: %(default)g)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
