"""Compiles training and sampling for TPUs that are not there, and says what a chip would hold, move and compute.

python -m tools.aot --config=configs/stage3_512.py --topology=v5e:16x16
python -m tools.aot --config=A.py --config=B.py --topology=v6e:16x16 --topology=2xv5e:16x16 --program=train --fit
python -m tools.aot --all --fit          # every stage of the papers on every topology of docs/scale.md
python -m tools.aot --config=A.py --topology=v5e:2x2 --topology=v5e:16x16 --growth=growth.png    # against chips

The compiler is the real one; it comes with libtpu (pip install "jax[tpu]"). Each program has its own process.
Results go to --out as they come, and what is there is not compiled again: the same command goes on after a kill.

The config's global batch is rounded down to a multiple of the chips, or up to one picture on each. --fit tries more
accumulation steps until the step fits, and where one picture is too much for a chip it splits it over several, by
config.mesh.context; of rematerialisation it tries the lightest first. Unless --config.mesh.fsdp is given, the state is
split over the fewest chips (1, 2, 4, ...) that leave a share of at most an eighth of the memory. Sampling draws one
picture on each chip, with whole parameters on each; --mesh, as of tools.sample, draws on several chips together.
--program=decode is what the autoencoder then does, of pictures above 1024 px for one of their tiles.

--growth compares training steps over topologies, with as many pictures on each chip as the config's batch comes to on
the most chips. It compiles models of two and of four blocks, and carries their figures on to the whole model's.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from pixart_jax.commands import GOES_ON, command, path_argument, tool, with_commands
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable, errors_naming
from pixart_jax.files.locks import own_target
from pixart_jax.files.typed_json import parse, read_bytes
from pixart_jax.models.remat import AUTO, BY_WEIGHT

from .aot_compile import PROGRAMS, Case, case_config, kept_bytes, parse_topology
from .aot_growth import growth_cases, growth_png, growth_table, point
from .aot_hlo import BETWEEN_SLICES

STAGES = (
    "stage1_256", "stage2_256", "stage3_256", "stage3_512", "stage3_1024",
    "sigma_256", "sigma_512", "sigma_1024", "sigma_2k", "sigma_4k",
)  # fmt: skip
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8", "2xv5e:16x16")
# Chips over which --fit splits a picture at most.
MAX_CONTEXT = 8
# JAX must start on this machine's CPU, and libtpu must neither look for chips nor for the cloud's metadata. Compiling
# another topology than the named type's works.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
}


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    configs, topologies = args.config, args.topology
    if args.all:
        configs, topologies = STAGES, TOPOLOGIES
    rows = []
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('the TPU compiler is not installed: pip install "jax[tpu]"')
    if args.growth:
        check_writable(args.growth.parent, f"--growth={args.growth}: the folder")
        cases = [case for config in configs for case in growth_cases(config, args.settings, topologies)]
    else:
        cases = [
            Case(config, tuple(args.settings), topology, program, mesh="" if program == "train" else args.mesh)
            for topology in topologies
            for config in configs
            for program in args.program
        ]
    for case in cases:  # What can be refused is refused before anything is compiled.
        case_config(case)
    try:
        with own_target(args.out, "--out"):
            for case in cases:
                rows.append((case, result := figures_of(case, args)))
                if args.json and not args.growth:
                    print(json.dumps(dataclasses.asdict(case) | result), flush=True)
    finally:
        if rows and not (args.json or args.growth):
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            print("\n".join(table(rows, width)))
    if args.growth:
        points = [point(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
        growth_png(args.growth, points)
        each = (json.dumps(dataclasses.asdict(each)) for each in points)
        print("\n".join(each if args.json else growth_table(points)))
    return 0


def figures_of(case: Case, args: argparse.Namespace) -> dict:
    """The figures of `tools.aot_compile`; with --fit of the first number of accumulation steps that fits, else of the
    last that was tried."""
    for attempt in attempts(case, fit=args.fit and case.program == "train"):
        if (known := known_result(args.out, attempt)) is not None:
            result = known
        else:
            result = compile_in_child(attempt, args.timeout)
            append_result(args.out, attempt, result)
        if result["fits"]:
            break
    return result


def attempts(case: Case, *, fit: bool) -> Iterator[Case]:
    """The case, or with `fit` what could fit, in turn: each number of accumulation steps that divides the pictures of a
    chip; then, unless the case says something about it, one picture split over 2, 4 and 8 chips. All that with the
    lightest rematerialisation first, where the config leaves it open."""
    if not fit:
        yield case
        return
    whole = case_config(case)
    if whole.model.remat == AUTO:
        for policy in BY_WEIGHT[1:]:
            named = (*case.settings, f"--config.model.remat={policy}")
            yield from attempts(dataclasses.replace(case, settings=named), fit=True)
        return
    settings: list[tuple[str, ...]] = [()]
    if whole.mesh.context == 1 and parse_topology(case.topology).chips % MAX_CONTEXT == 0:
        settings += [(f"--config.mesh.context={2**n}",) for n in range(1, MAX_CONTEXT.bit_length())]
    for extra in settings:
        split = dataclasses.replace(case, settings=(*case.settings, *extra))
        config, topology = case_config(split), parse_topology(case.topology)
        over = config.mesh.context * config.mesh.tensor
        pictures = config.data.batch_size * over // topology.chips
        steps = [n for n in range(config.train.accumulation_steps, pictures + 1) if pictures % n == 0]
        for n in steps[-1:] if extra else steps:
            if n == pictures or pictures // n * kept_bytes(config) / over < topology.hardware.memory_bytes:
                yield dataclasses.replace(split, accumulation_steps=n)


def known_result(path: pathlib.Path, case: Case) -> dict | None:
    """What an earlier call wrote; lines that are damaged count as not there."""
    if not path.exists():
        return None
    wanted = json.loads(json.dumps(dataclasses.asdict(case)))
    for line in read_bytes(path, "name another --out").splitlines():
        try:
            entry = parse(line)
        except ValueError:  # Killed while it was written.
            continue
        if not (isinstance(entry, dict) and isinstance(entry.get("case"), dict) and is_result(entry.get("result"))):
            continue
        # Files of before --growth and --mesh do not say how many blocks, nor how chips draw.
        if {"blocks": 0, "mesh": ""} | entry["case"] == wanted:
            return entry["result"]
    return None


def is_result(found: object) -> bool:
    """Whether these are figures that a table can be made of."""
    if not isinstance(found, dict) or type(found.get("fits")) is not bool:
        return False
    counts = ("batch_size", "chips", "accumulation_steps", "fsdp", "context")
    amounts = ("capacity_bytes", "flops", *(("total_bytes",) if "total_bytes" in found else ()))
    return (
        all(type(found.get(name)) is int and found[name] > 0 for name in counts)
        and all(type(found.get(name)) in (int, float) for name in amounts)
        and ("total_bytes" in found or isinstance(found.get("compiler"), str))
    )


def append_result(path: pathlib.Path, case: Case, result: dict) -> None:
    """Adds a line; half a line that a kill left behind is ended before it."""
    line = json.dumps({"case": dataclasses.asdict(case), "result": result}) + "\n"
    with errors_naming(path), path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def compile_in_child(case: Case, timeout: float) -> dict:
    """Runs tools.aot_compile, which takes a compiler's memory with it when it ends.

    Raises:
      InputError: the input is at fault, the time is up, or the compiler failed for another reason than memory.
    """
    name = f"{pathlib.Path(case.config).stem} {case.program} on {case.topology}"
    if case.accumulation_steps:
        name += f" in {case.accumulation_steps} accumulation step(s)"
    if case.blocks:
        name += f" with {case.blocks} blocks"
    print(f"{name}: compiling", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        process = subprocess.run(
            [sys.executable, "-m", f"{__package__}.aot_compile", json.dumps(dataclasses.asdict(case))],
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{name}: not compiled in {timeout:g} s; give --timeout more") from None
    if process.returncode:
        raise InputError(f"{name}: the compiler failed:\n{process.stderr[-2000:]}")
    result = json.loads(process.stdout.splitlines()[-1])
    if "error" in result:
        raise InputError(result["error"])
    said = f"{gigabytes(result['total_bytes'])} GB" if "total_bytes" in result else result["compiler"]
    verdict = "fits" if result["fits"] else "does not fit"
    seconds = time.perf_counter() - begin
    print(f"{name}: {said}, {verdict} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return result


# --- words


def table(rows: Sequence[tuple[Case, dict]], width: int | None = None) -> Iterator[str]:
    """All figures per chip: Markdown, one line for each program; where that is wider than `width`, one column for each,
    as many beside each other as there is room for.
    """
    columns = {
        "program": lambda case, r: f"{pathlib.Path(case.config).stem} {case.program}",
        "topology": lambda case, r: case.topology,
        "batch": lambda case, r: f"{r['batch_size']:,}",
        "per chip": lambda case, r: f"{per_chip(r)}",
        "remat": lambda case, r: r.get("remat", ""),
        "fsdp × context": lambda case, r: f"{r['fsdp']}" + (f" × {r['context']}" if r["context"] > 1 else ""),
        "arguments GB": lambda case, r: gigabytes(r.get("argument_bytes")),
        "scratch GB": lambda case, r: gigabytes(r.get("scratch_bytes")),
        "total / capacity GB": lambda case, r: f"{total(r)} / {r['capacity_bytes'] / 1e9:g}",
        "TFLOPs": lambda case, r: figure(r["flops"] / 1e12),
        "memory traffic GB": lambda case, r: gigabytes(r.get("memory_bytes")),
        "sent by collectives GB": lambda case, r: collectives(r),
        "lower bound s": lambda case, r: bound(r),
        "utilisation ≤": lambda case, r: f"{r['utilisation']:.0%}" if "utilisation" in r else "",
        "estimated s": lambda case, r: f"{r['estimated_seconds']:.3g}" if r.get("estimated_seconds") else "",
        "collectives s": lambda case, r: f"{r['collective_seconds']:.3g}" if "collective_seconds" in r else "",
        "beside work": lambda case, r: hidden(r),
        "compiled in s": lambda case, r: f"{r['compile_seconds']:.0f}" if "compile_seconds" in r else "",
    }
    cells = [list(columns), *([show(case, result) for show in columns.values()] for case, result in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if width is not None and sum(widths) + 3 * len(widths) + 1 > width:
        yield from columns_of(cells, width)
        return
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def columns_of(cells: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The first row of cells as a column of names, beside it as many others as there is room for, and so on below."""
    names, *rest = cells
    first = max(map(len, names))
    while rest:
        taken, used = 0, first
        while taken < len(rest) and (not taken or used + 2 + max(map(len, rest[taken])) <= width):
            used += 2 + max(map(len, rest[taken]))
            taken += 1
        block, rest = rest[:taken], rest[taken:]
        for name, *row in zip(names, *block, strict=True):
            padded = (cell.ljust(max(map(len, column))) for cell, column in zip(row, block, strict=True))
            yield "  ".join([name.ljust(first), *padded]).rstrip()
        if rest:
            yield ""


def gigabytes(count: float | None) -> str:
    return "" if count is None else figure(count / 1e9)


def figure(number: float) -> str:
    """Three digits; thousands without decimals."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def per_chip(result: dict) -> str:
    steps, context, chips = result["accumulation_steps"], result["context"], result["chips"]
    pictures = result["batch_size"] * context // chips // steps
    if not pictures:  # The branches of guidance are on chips of their own.
        return f"1/{chips // result['batch_size']}"
    return (f"{steps} × " if steps > 1 else "") + (f"{pictures}" if context == 1 else f"{pictures}/{context}")


def total(result: dict) -> str:
    return gigabytes(result["total_bytes"]) if "total_bytes" in result else result["compiler"]


def collectives(result: dict) -> str:
    """Those that are at least a thousandth of all, and the slow network's; `--json` has the others too."""
    sent = sorted(result.get("collective_bytes", {}).items(), key=lambda item: -item[1])
    least = sum(count for _, count in sent) / 1000
    return ", ".join(f"{kind} {gigabytes(count)}" for kind, count in sent if count >= least or kind == BETWEEN_SLICES)


def hidden(result: dict) -> str:
    """The share of the collectives' time that has work beside it."""
    return f"{1 - result['exposed_seconds'] / all_of:.0%}" if (all_of := result.get("collective_seconds")) else ""


def bound(result: dict) -> str:
    if "bounds_seconds" not in result:
        return ""
    return f"{result['bound_seconds']:.3g} ({max(result['bounds_seconds'], key=result['bounds_seconds'].get)})"


# --- command line


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("aot"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], help="may be given again")
    parser.add_argument("--topology", action="append", default=[], help="[SLICESx]CHIP:SHAPE; may be given again")
    parser.add_argument("--all", action="store_true", help="every stage on every topology, in their place")
    parser.add_argument(
        "--program", action="append", choices=PROGRAMS, help="may be given again (default: train and sample)"
    )
    parser.add_argument("--mesh", default="", metavar="[data=N,]context=N", help="chips that draw one picture together")
    parser.add_argument("--fit", action="store_true", help="accumulate over as many steps as it takes to fit")
    parser.add_argument(
        "--out", type=path_argument, default=pathlib.Path("runs/aot.jsonl"), help="results (default: %(default)s)"
    )
    parser.add_argument("--growth", metavar="PICTURE", type=path_argument, help="a PNG: figures against chips")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for each program (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON lines")
    parser.add_argument("--setting", action="append", dest="settings", default=[], help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([f"--setting={a}" if a.startswith("--config.") else a for a in argv])
    if args.growth and (args.fit or args.program or args.growth.suffix != ".png"):
        parser.error("--growth=PICTURE.png compiles training steps as they are: without --fit and --program")
    args.program = args.program or list(PROGRAMS[:2])
    if bool(args.all) == bool(args.config or args.topology) or bool(args.config) != bool(args.topology):
        parser.error("give --config and --topology, or --all")
    if args.mesh and (args.growth or set(args.program) == {"train"}):
        parser.error("--mesh is how --program=sample and decode draw; training's is --config.mesh")
    return args


if __name__ == "__main__":
    sys.exit(main())
