"""Time and peak memory of conversion, with random weights of a released model's shape, each in a process of its own.

The disk is part of it: give --directory one that is as fast as that of real use, with five times the model's size free.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from pixart_jax.commands import command
from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.conversion.formats.base import ModelWeights
from pixart_jax.conversion.stored import StoredModel
from pixart_jax.conversion.transfer import write_pixart
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import SIZES, PixArt

from .options import add_directory, empty_folder


def run(argv: Sequence[str]) -> Iterator[dict]:
    """Figures of .pth to ours, ours to .pth, ours to diffusers and diffusers to ours."""
    parser = argparse.ArgumentParser(prog=f"{command('bench')} --what=convert", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="XL/2")
    add_directory(parser)
    args = parser.parse_args(argv)
    with empty_folder(args.directory) as folder:
        write_pixart(folder / "model.pth", random_weights(args.size))
        for source, target, to in (
            ("model.pth", "ours", "orbax"),
            ("ours", "again.pth", "pixart"),
            ("ours", "transformer", "diffusers"),
            ("transformer", "ours-again", "orbax"),
        ):
            model_bytes = (folder / "model.pth").stat().st_size
            figures = measure(folder / source, folder / target, to)
            yield {"size": args.size, "from": source, "to": to, "model_bytes": model_bytes, **figures}


def random_weights(size: str) -> ModelWeights:
    """Of a PixArt-Σ at 1024 px."""
    family = FAMILIES["sigma"]
    model = PixArt(**SIZES[size], max_text_tokens=family["max_text_tokens"])
    shapes, rng = parameter_shapes(model), np.random.default_rng(0)
    stored = StoredModel(
        model=model,
        position_base=64,
        position_scale=2.0,
        null_text="stored",
        provenance={"source": "tools.bench"},
        latent_scale=family["latent_scale"],
        caption_cleaning=family["caption_cleaning"],
        sampler=family["sampler"],
    )
    return ModelWeights(stored, list(shapes), lambda path: rng.standard_normal(shapes[path], dtype=np.float32))


def measure(source: pathlib.Path, target: pathlib.Path, to: str) -> dict:
    """Wall time and memory of one run of tools.convert, Python and its libraries included.

    `peak_bytes` is the process's own memory, looked at every 10 ms. `resident_bytes` counts the pages of mapped files
    too, which the kernel takes back when anything else needs the memory.
    """
    tools = __package__.rpartition(".")[0]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"{tools}.convert", str(source), str(target), f"--to={to}", *family(source)],
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    if status:
        raise RuntimeError(f"tools.convert failed from {source.name} to {to}; its message stands above")
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_bytes": peak, "resident_bytes": usage.ru_maxrss * 1024}


def anonymous_bytes(pid: int) -> int:
    """What a process has in memory that is no file's, where Linux says so."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def family(source: pathlib.Path) -> list[str]:
    """What a diffusers transformer does not tell."""
    return ["--family=sigma"] if (source / "config.json").exists() else []
