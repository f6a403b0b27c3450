"""A benchmark's figures for people: what its JSON lines say, but once what is the same in all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What says little at a glance; the JSON lines have it.
_LEFT_OUT = ("versions", "what", "seconds_min", "seconds_max", "peak_bytes_of")


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines: first what all rows share, then a table of the rest, or of several rows too wide for one, a list of each.

    Args:
      rows: what the benchmark's JSON lines hold.
    """
    flat = [dict(_flatten(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    shared = [name for name in names if len(rows) == 1 or all(row.get(name) == flat[0].get(name) for row in flat)]
    yield from _aligned([[name, _text(name, flat[0][name])] for name in shared])
    differing = [name for name in names if name not in shared]
    if not differing:
        return
    yield ""
    cells = [differing, *([_text(name, row.get(name)) for name in differing] for row in flat)]
    lines = list(_aligned(cells))
    if max(map(len, lines)) <= shutil.get_terminal_size((120, 24)).columns:
        yield from lines
        return
    for row in flat:
        yield from _aligned([[name, _text(name, row[name])] for name in differing if name in row])
        yield ""


def _flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name in _LEFT_OUT or value is None:
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name} ")
        elif value != []:
            yield f"{prefix}{name}".replace("_", " "), value


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _text(name: str, value: Any) -> str:
    """A figure with the unit that its name tells."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    last = name.split()[-1]
    if last == "seconds" and not name.endswith("per second"):
        return f"{_digits(value)} s" if value >= 1 else f"{_digits(1000 * value)} ms"
    if last == "bytes":
        return _scaled(value, "B")
    if "flops" in name:
        return _scaled(value, "FLOP/s" if name.endswith("per second") else "FLOP")
    if last in ("utilisation", "mfu", "efficiency"):
        return f"{value:.1%}"
    if last == "ratio" or name.startswith("ratio"):
        return f"{_digits(value)}×"
    return _digits(value) if isinstance(value, float) else f"{value:,}"


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)} {unit}"


def _digits(value: float) -> str:
    """Three of them; thousands without decimals."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
