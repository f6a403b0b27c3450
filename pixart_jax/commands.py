"""How the tools are called here: in a checkout, or where the package is installed."""

from __future__ import annotations

import pathlib
import re

# The console scripts of pyproject.toml, by the tool that each starts.
_SCRIPTS = {
    "aot": "pixart-aot",
    "bench": "pixart-bench",
    "convert": "pixart-convert",
    "cost": "pixart-cost",
    "extract_features": "pixart-extract",
    "inspect_data": "pixart-inspect",
    "sample": "pixart-sample",
}


def command(tool: str) -> str:
    """What starts tools/TOOL.py: `python -m tools.TOOL` in a checkout, else its console script if it has one."""
    if not (pathlib.Path(__file__).parent / "tools").is_dir():
        return f"python -m tools.{tool}"
    return _SCRIPTS.get(tool, f"python -m pixart_jax.tools.{tool}")


def with_commands(text: str) -> str:
    """A tool's description, with the commands and configs that it names as they are called here."""
    text = re.sub(r"python -m tools\.(\w+)", lambda match: command(match[1]), text)
    return text if command("sample").startswith("python") else re.sub(r"\bconfigs/(\w+)\.py", r"\1", text)
