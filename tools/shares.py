"""Options of tools whose work several processes share, and the lines that say how far one of them is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Tally
from pixart_jax.training.metrics import format_duration


def add_share(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds --process-index and --process-count; returns their group."""
    share = parser.add_argument_group("sharing the work", "every process runs the same command but for its index")
    share.add_argument("--process-index", type=int, default=0)
    share.add_argument("--process-count", type=int, default=1)
    return share


def check_share(args: argparse.Namespace) -> None:
    """Raises InputError for a process that is none of those that share the work."""
    if not 0 <= args.process_index < args.process_count:
        raise InputError(f"--process-index {args.process_index} of --process-count {args.process_count}: count from 0")


def check_counts(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raises InputError for an option of these that was given and is below 1."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")


def share_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `files.unit_work.work_through` is to know of this process."""
    prefix = f"process {args.process_index + 1}/{args.process_count}: "
    return {
        "process_index": args.process_index,
        "process_count": args.process_count,
        "report": ProgressLines(prefix),
    }


class ProgressLines:
    """Prints, unit by unit, how fast it goes and when it will be done."""

    def __init__(self, prefix: str):
        self._prefix = prefix
        self._first: tuple[float, int] | None = None

    def __call__(self, tally: Tally) -> None:
        now = time.perf_counter()
        line = f"{self._prefix}{tally.items}/{tally.total_items} items"
        if tally.skipped is not None:
            line += f", {tally.skipped} skipped"
        if self._first is None:  # Compilation, and what an earlier run has done, would spoil the rate.
            self._first = now, tally.items
        elif now > self._first[0]:
            rate = (tally.items - self._first[1]) / (now - self._first[0])
            line += f", {rate:.1f}/s, {format_duration((tally.total_items - tally.items) / rate)} to go"
        print(line, file=sys.stderr, flush=True)
