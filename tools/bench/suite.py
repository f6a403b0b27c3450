"""The first half hour on a GPU: what is to be known of it, in order of importance, one command.

python -m tools.bench --suite=gpu [--minutes=25] --out DIR        DIR/figures.jsonl, DIR/table.md, a log of each row
python -m tools.bench --suite=rehearsal --out DIR                 the same rows, so small that a CPU does them

Each row has a process and a time limit of its own. Where memory runs out the next smaller batch is taken, where
something fails the others go on, and what is in figures.jsonl already is not measured again: the same command goes on
after a kill.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from pixart_jax.commands import path_argument
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable, write_atomically

FIGURES, TABLE = "figures.jsonl", "table.md"
# What a program that has run out of memory says, by XLA and by PyTorch.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "OutOfMemoryError")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      name: in the table, and of its log.
      arguments: of `tools.bench`; "{batch}" stands for the batch.
      batches: to be tried, largest first.
      minutes: it may take.
      flags: of XLA, beside those that are set.
    """

    name: str
    arguments: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    minutes: float = 4
    flags: str = ""


def rows(suite: str) -> list[Row]:
    """In order of importance; a rehearsal has the same ones of tiny models."""
    small = suite == "rehearsal"
    quick = ("--rounds=1", "--steps=1") if small else ("--rounds=3",)
    tiny = (
        *("--config.dtype=float32", "--config.model.depth=2", "--config.model.hidden_size=48"),
        *("--config.model.num_heads=4", "--config.model.text_dim=16", "--config.model.max_text_tokens=8"),
        *("--config.model.resolution=128", "--config.model.position_scale=1.0", "--config.model.kv_compress_from=1"),
    )

    def of(what: str, config: str, *options: str) -> tuple[str, ...]:
        adamw = ("--config.optimizer.name=adamw",) if config.startswith("sigma") and what == "train" else ()
        settings = (f"--config=configs/{config}.py", "--config.data.batch_size={batch}", *adamw)
        return (f"--what={what}", *quick, *settings, *options, *(tiny if small else ()))

    def attention(head_dim: int) -> tuple[str, ...]:
        sizes: tuple[str, ...] = ("--resolutions=512,1024", "--text=120", "--seconds=0.3")
        if small:
            sizes = ("--resolutions=128", "--text=8", "--seconds=0.01", "--rounds=1")
        return "--what=attention", f"--head-dim={head_dim}", "--kv-compress=1", *sizes

    def batches(*sizes: int) -> tuple[int, ...]:
        return (2, 1) if small else sizes

    alone, dots = "--peer=none", "--config.model.remat=dots"
    compiled = "--peer=none" if small else "--peer=compile,cudnn"
    encoders = ("--size=tiny", "--captions=2", "--text-tokens=8", "--pictures=1", "--resolution=32") if small else ()
    few = ("--config.sample.num_steps=2",) if small else ()
    train = {512: of("train", "stage3_512", dots), 1024: of("train", "stage3_1024", dots)}
    found = [
        Row("attention, heads of 72", (*attention(72), alone), minutes=3),
        Row("train 512 px", (*train[512], alone), batches(64, 48, 32, 16)),
        Row("train 1024 px", (*train[1024], alone), batches(12, 8, 6, 4)),
        Row("train 512 px beside diffusers", (*train[512], compiled), batches(24, 16, 8), 6),
        Row("train 1024 px beside diffusers", (*train[1024], compiled), batches(6, 4, 2), 6),
        Row("sample 1024 px", of("sample", "stage3_1024", alone, "--batch-sizes={batch}", *few), batches(8, 4, 1)),
        *(Row(f"attention, heads of {size}", (*attention(size), alone), minutes=2) for size in (64, 80, 96, 128)),
        *(
            Row(f"forward {config}", of("forward", config, alone), batches(*sizes), 2)
            for config, sizes in (
                ("stage3_256", (128, 64)), ("stage3_512", (32, 16)), ("stage3_1024", (8, 4)), ("sigma_2k", (2, 1)),
            )
        ),
        *(
            Row(f"train 1024 px, {flags}", (*train[1024], alone), batches(8, 6, 4), 3, flags)
            for flags in ("--xla_gpu_enable_triton_gemm=false", "--xla_gpu_enable_latency_hiding_scheduler=true")
        ),
        Row("T5-XXL and autoencoder", ("--what=encoders", alone, *quick[:1], *encoders), minutes=3),
        Row("train 256 px", (*of("train", "stage3_256", dots), alone), batches(256, 128, 64)),
        Row("train sigma 1024 px", (*of("train", "sigma_1024", dots), alone), batches(8, 6, 4)),
        Row("train 1024 px, remat=auto", (*of("train", "stage3_1024"), alone), batches(12, 8, 6)),
    ]  # fmt: skip
    if small:  # A CPU's XLA does not know a GPU's flags.
        found = [dataclasses.replace(row, flags="") for row in found]
    return found


def run_suite(argv: Sequence[str], plan: Sequence[Row] | None = None) -> int:
    """Runs what is not there yet, until the time is up.

    Args:
      plan: in place of the suite's rows.
    """
    parser = argparse.ArgumentParser(prog="tools.bench --suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=("gpu", "rehearsal"), required=True)
    parser.add_argument("--minutes", type=float, default=25, help="in all (default: %(default)g)")
    parser.add_argument("--out", type=path_argument, required=True, help="a folder for figures, table and logs")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        raise InputError(f"--minutes={args.minutes:g}: must be above 0")
    check_writable(args.out, "--out")
    args.out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + 60 * args.minutes, known(args.out / FIGURES)
    plan = rows(args.suite) if plan is None else plan
    for at, row in enumerate(plan, 1):
        if any(figures["row"] == row.name for figures in found):
            continue
        left = end - time.monotonic()
        if left < 20:
            print(f"time is up before {row.name}; the same command goes on there", file=sys.stderr)
            break
        print(f"{at}/{len(plan)}  {row.name}, {left / 60:.0f} minutes left", file=sys.stderr, flush=True)
        found += measure(row, args.out, min(left, 60 * row.minutes))
        text = "\n".join(table(found)) + "\n"
        write_atomically(args.out / TABLE, functools.partial(_write, text.encode()))
    print("\n".join(table(found)))
    return 0


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def known(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of an earlier call; damaged ones count as not there."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            figures = json.loads(line)
        except ValueError:
            continue
        if isinstance(figures, dict) and isinstance(figures.get("row"), str):
            found.append(figures)
    return found


def measure(row: Row, out: pathlib.Path, seconds: float) -> list[dict[str, Any]]:
    """Its figures with the first batch that fits; what failed is a line too. All are written at once."""
    end = time.monotonic() + seconds
    log = out / f"{''.join(c if c.isalnum() else '_' for c in row.name)}.log"
    for batch in row.batches:
        status, lines = run_row(row, batch, log, max(end - time.monotonic(), 1))
        if status == "out of memory" and batch != row.batches[-1]:
            print(f"  batch {batch}: out of memory", file=sys.stderr, flush=True)
            continue
        break
    found = [{"row": row.name, "batch": batch, "flags": row.flags, **figures} for figures in lines]
    if status:
        found.append({"row": row.name, "batch": batch, "flags": row.flags, "failed": status})
    with (out / FIGURES).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(figures) + "\n" for figures in found)
        file.flush()
        os.fsync(file.fileno())
    return found


def run_row(row: Row, batch: int, log: pathlib.Path, seconds: float) -> tuple[str, list[dict[str, Any]]]:
    """("" or why it failed, the figures that came before)."""
    arguments = [argument.format(batch=batch) for argument in row.arguments]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {row.flags}".strip()
    status = ""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.bench", *arguments],
            env=os.environ | ({"XLA_FLAGS": flags} if flags else {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # With the peers' processes, it ends as one.
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = f"not done in {seconds:.0f} s"
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode and not status:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
        status = "out of memory" if any(word in said for word in OUT_OF_MEMORY) else last[:200] or "it failed"
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    return status, [figures for line in lines if (figures := _object(line)) is not None]


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # Killed while it was written.
        return None
    return found if isinstance(found, dict) else None


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: a line for each figure."""
    names = "row,case,batch,remat,time,a second,utilisation,mfu,ratio to PyTorch,largest difference,memory GB"
    columns = names.split(",")
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for figures in found:
        cells = [figures["row"], _case(figures), str(figures.get("batch", ""))]
        if figures.get("failed") or figures.get("skipped"):
            cells += ["", str(figures.get("failed") or figures["skipped"]), *([""] * 6)]
        else:
            cells += [
                str(figures.get("remat", "")),
                _number(figures.get("seconds"), 1000, " ms"),
                _number(figures.get("images_per_second") or figures.get("captions_per_second")),
                _number(figures.get("utilisation"), 100, " %"),
                _number(figures.get("mfu"), 100, " %"),
                _number(figures.get("ratio")),
                _number(figures.get("max_difference")),
                _number(figures.get("peak_bytes"), 1e-9),
            ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    devices = dict.fromkeys(f"{f['device']}, jax {f['versions']['jax']}" for f in found if "device" in f)
    return [*lines, "", *(f"Measured on: {device}." for device in devices)]


def _case(figures: Mapping[str, Any]) -> str:
    """What tells several lines of a row apart."""
    if "implementation" in figures:
        with_backward = ", backward" if figures.get("backward") else ""
        return f"{figures['implementation']} {figures.get('queries')}→{figures.get('keys')}{with_backward}"
    return str(figures.get("encoder", ""))


def _number(value: Any, factor: float = 1, unit: str = "") -> str:
    return f"{value * factor:.3g}{unit}" if isinstance(value, int | float) else ""
