"""What a T2I-CompBench found, as Markdown, and whether two of them may stand side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import Fields, read_fields

SUITE = "T2I-CompBench"


def table(result: Mapping[str, Any]) -> str:
    """A row of the categories' scores, and what they come from."""
    lines = [rows({result["suite"]: result["scores"]}), ""]
    for name, networks in result["networks"].items():
        pictures, means = result["pictures"][name], result["parts"][name]
        left_out = pictures["files"] - pictures["used"]
        lines.append(
            f"- {name}: {pictures['prompts']} prompts, {pictures['used']} pictures"
            + (f", {left_out} could not be read" if left_out else "")
        )
        for score, network in networks.items():
            digest = f", weights {network['sha256'][:12]}" if network["sha256"] else ""
            mean = f" {_figure(means[score])}" if len(networks) > 1 else ""
            lines.append(f"  - {score}{mean}: {network['name']}{digest}")
            if network["differs"]:
                lines.append(f"    - differs from the benchmark: {network['differs']}")
    return "\n".join(lines)


def rows(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """A row for each of several results' scores, by what the rows are called."""
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    return "\n".join(
        [
            "| | " + " | ".join(name.replace("_", "-") for name in names) + " |",
            "|---" * (len(names) + 1) + "|",
            *(f"| {title} | " + " | ".join(_figure(row.get(n)) for n in names) + " |" for title, row in scores.items()),
        ]
    )


def compare(first: pathlib.Path, second: pathlib.Path) -> str:
    """Two results' scores as a table.

    Raises:
      InputError: one is no result, or a category that both have was scored by other networks, or has other prompts or
        another number of pictures; says which.
    """
    one, two = (_read(path) for path in (first, second))
    common = [name for name in one["scores"] if name in two["scores"]]
    if not common:
        raise InputError(f"{first} and {second} do not compare: they have no category in common")
    differing = [
        f"{name}, {what}: {a!r} and {b!r}"
        for name in common
        for what, a, b in zip(_COMPARED, _facts(one, name), _facts(two, name), strict=True)
        if a != b
    ]
    if differing:
        raise InputError(f"{first} and {second} do not compare, as they differ in\n  " + "\n  ".join(differing))
    return rows({str(first): one["scores"], str(second): two["scores"]})


_COMPARED = ("networks", "prompts", "pictures")


def _facts(result: Fields, name: str) -> tuple[Any, ...]:
    """As `_COMPARED`: what a category's score depends on but for what drew the pictures."""
    pictures = result.fields("pictures").fields(name)
    networks = result.fields("networks").fields(name)
    scored = {score: (networks.fields(score).text("name"), networks.fields(score).text("sha256")) for score in networks}
    return scored, pictures.text("prompts_sha256"), pictures.integer("used", 0, 1 << 40)


def _read(path: pathlib.Path) -> Fields:
    result = read_fields(path, "name a result.json of --suite compbench")
    result.text("suite", choices=(SUITE,))
    scores = result.fields("scores")
    for name in scores:
        scores.number(name, -1, 1, None)
    return result


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
