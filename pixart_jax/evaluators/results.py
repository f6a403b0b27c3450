"""What an evaluation found, as a file and as a table, and whether two of them may stand side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields

# What two results must have in common to stand side by side; see docs/evaluation.md.
COMPARED = ("network", "preprocessing", "pictures.used", "reference.fingerprint", "reference.used", "kid_subset_size")

Result = Mapping[str, Any]


def compare(first: pathlib.Path, second: pathlib.Path) -> str:
    """Two results' table; raises InputError, with the reason, if they do not compare or one is none."""
    results: list[Result] = []
    for path in (first, second):
        try:
            results.append(dict(read_fields(path, "name a result.json")))
            for key in (*COMPARED, "metrics", "pictures.path", "reference.path"):
                _field(results[-1], key)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of an evaluation: {error} is not in it") from error
    one, two = results
    if differing := [key for key in COMPARED if _field(one, key) != _field(two, key)]:
        rows = [f"{key}: {_field(one, key)!r} and {_field(two, key)!r}" for key in differing]
        raise InputError(f"{first} and {second} do not compare, as they differ in\n  " + "\n  ".join(rows))
    return table(results)


def _field(result: Result, dotted: str) -> Any:
    value: Any = result
    for key in dotted.split("."):
        value = value[key]
    return value


def table(results: Sequence[Result]) -> str:
    """Markdown: a row per result, and a line on what they have in common."""
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    lines = ["| pictures | N | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for result in results:
        figures = [f"{result['metrics'][name]:.4f}" if name in result["metrics"] else "" for name in names]
        side = result["pictures"]
        lines.append(f"| {side['path']} | {side['used']} | " + " | ".join(figures) + " |")
    first = results[0]
    weights = {True: "its published weights", False: "weights that are not the published ones"}.get(
        first["network"]["published"], f"weights {first['network']['sha256'][:8]}"
    )
    lines += [
        "",
        f"Features of {first['network']['name']} with {weights}, preprocessing {first['preprocessing']}; reference "
        f"{first['reference']['path']} ({first['reference']['used'] or 'an unknown number of'} pictures).",
    ]
    return "\n".join(lines)
