"""What a T2I-CompBench found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """A row of the categories' scores, and what they come from."""
    scores = result["scores"]
    lines = [
        "| | " + " | ".join(name.replace("_", "-") for name in scores) + " |",
        "|---" * (len(scores) + 1) + "|",
        f"| {result['suite']} | " + " | ".join(_figure(value) for value in scores.values()) + " |",
        "",
    ]
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


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
