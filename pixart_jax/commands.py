"""How the tools are called here, in a checkout or where the package is installed, and what they take for a path."""

from __future__ import annotations

import argparse
import pathlib
import re

from pixart_jax.errors import InputError
from pixart_jax.files import local_path
from pixart_jax.rng import check_seed

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


def seed_argument(text: str) -> int:
    """The `type` of an argument that is a seed; see `rng.check_seed`."""
    try:
        return check_seed(int(text), "the seed")
    except ValueError as error:  # InputError is one.
        cause = error if isinstance(error, InputError) else f"the seed {text!r} is no whole number"
        raise argparse.ArgumentTypeError(str(cause)) from error


def path_argument(text: str) -> pathlib.Path:
    """The `type` of an argument that names a file or a folder; see `files.local_path`."""
    try:
        return local_path(text, "the path")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
