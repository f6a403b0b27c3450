"""PixArt-α and PixArt-Σ text-to-image diffusion transformers in JAX."""

import importlib.metadata
import pathlib
import tomllib


def _find_version() -> str:
    """Of the checkout, where this is one, whatever else is installed; it stands in pyproject.toml alone."""
    pyproject = pathlib.Path(__file__).parent.parent / "pyproject.toml"
    if pyproject.is_file():
        return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"]
    try:
        return importlib.metadata.version(__name__)
    except importlib.metadata.PackageNotFoundError:  # The folder alone was copied.
        return "unknown"


__version__ = _find_version()
