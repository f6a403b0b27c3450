"""What must be the same on every process of a run."""

from __future__ import annotations

import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

import pixart_jax
from pixart_jax.data.shards.manifest import MANIFEST_FILE
from pixart_jax.training.record import versions


def run_facts(
    settings: Mapping[str, Any],
    sources: Iterable[str],
    position: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    prompts: Iterable[str],
) -> dict[str, str]:
    """What must be the same on every process of a run.

    Args:
      settings: of the config, by dotted key.
      sources: the folders of feature shards that are read.
      position: the state of the input pipeline.
      weights: that the run starts from; empty where it starts afresh or is resumed.
      prompts: that it draws, of which each process draws its part.
    """
    checksum = 0
    for path in sorted(weights):
        checksum = zlib.crc32(np.ascontiguousarray(weights[path]).view(np.uint8).data, checksum)
    return {
        **{name: str(version) for name, version in versions().items()},
        "code (pixart_jax/**/*.py)": code_digest(),
        "devices": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        **{f"config.{key}": repr(value) for key, value in settings.items()},
        **{
            f"{folder}/{MANIFEST_FILE}": _digest((pathlib.Path(folder) / MANIFEST_FILE).read_bytes())
            for folder in sources
        },
        "input pipeline": json.dumps(position),
        "text of config.sample.prompts": _digest("\n".join(prompts).encode()),
        "weights to start from": f"{checksum:08x}" if weights else "none",
    }


def code_digest() -> str:
    """Of the package's source, wherever it lies."""
    root = pathlib.Path(pixart_jax.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0" for file in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
