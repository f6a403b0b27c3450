"""The converted encoders that a run was told: where they were, and whether what lies there now is the same."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

# What a run may be told, as its folder in a pipeline and as an error calls it.
KINDS = {"text_encoder": "text encoder", "vae": "autoencoder"}

# Bytes of a file's beginning and end that its fingerprint reads: a T5 has 20 GB.
_READ = 1 << 16


def describe_encoder(folder: pathlib.Path) -> dict[str, str]:
    """What is written down of an encoder: its folder, and the fingerprint of what lies there."""
    return {"path": str(folder.absolute()), "sha256": fingerprint(folder)}


def fingerprint(folder: pathlib.Path) -> str:
    """SHA-256 over names and sizes of all files in a folder, and both ends of each.

    It tells an encoder from one that was put in its place or written anew, and takes no longer for a large one.

    Raises:
      OSError: something cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(_READ))
            if size > _READ:
                file.seek(max(_READ, size - _READ))
                digest.update(file.read(_READ))
    return digest.hexdigest()


def find_told(recorded: Mapping[str, Any], kind: str) -> tuple[pathlib.Path | None, str]:
    """The encoder of a kind that `describe_encoder` described, where it is there and the same; else why not.

    Args:
      recorded: descriptions by kind, as a file holds them; anything may have happened to it.
    """
    told = recorded.get(kind)
    if not (isinstance(told, Mapping) and isinstance(told.get("path"), str)):
        return None, "the run was not told where it is"
    folder = pathlib.Path(told["path"])
    try:
        if not folder.is_dir():
            return None, f"the run was told {folder}, which is gone"
        if fingerprint(folder) != told.get("sha256"):
            return None, f"the run was told {folder}, which is another now"
    except (OSError, ValueError) as error:
        return None, f"the run was told {told['path']!r:.200}, which cannot be read ({error})"
    return folder, ""
