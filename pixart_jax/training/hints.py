"""What a run says at its end about going on from here: commands that can be pasted as they are."""

from __future__ import annotations

import os
import pathlib
import shlex

from pixart_jax.commands import command, training_command
from pixart_jax.config import ConfigDict
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import SampleSource
from pixart_jax.encoding.registry import kept_encoders

# Samples among which the shortest caption is looked for, and its words that are enough for a prompt.
_SAMPLES, _WORDS = 16, 16
# Stands for a folder that the run was not told.
_FOLDER = "DIR"


def next_steps(workdir: pathlib.Path, config: ConfigDict, manifest: Manifest, samples: SampleSource) -> list[str]:
    """How to draw from a run's weights, to evaluate and to export them: a line each.

    Args:
      config: of the run.
      manifest: of the data that the run trains on.
      samples: they, or some of them: the prompt is one of their captions.
    """
    folder = shlex.quote(shown(workdir))
    lines = []
    if (caption := _caption(samples)) and not config.model.num_classes:
        encoders = _encoders(config, manifest)
        options = "".join(f" --{name} {shlex.quote(path) if path else _FOLDER}" for name, path in encoders.items())
        asked = [name for name, path in encoders.items() if not path]
        note = f"  ({_FOLDER}: the {' and the '.join(asked)} that tools.convert wrote)" if asked else ""
        lines.append(
            f"draw anything: {command('sample')} --checkpoint {folder} --prompt {shlex.quote(caption)}{options}{note}"
        )
    if config.eval.source.strip():
        lines.append(f"evaluated on {config.eval.source}: {shown(workdir / 'eval.jsonl')}")
    else:
        lines.append(
            f"evaluate: {training_command(workdir)} --config.eval.source={_FOLDER}  ({_FOLDER}: feature shards of "
            "pictures that it has not seen)"
        )
    target = shlex.quote(shown(workdir.with_name(f"{workdir.name}-diffusers")))
    pipeline = _pipeline(config) if _encoders(config, manifest) and not config.model.num_classes else None
    beside = f" --encoders {shlex.quote(pipeline)}" if pipeline else ""
    lines.append(f"export: {command('convert')} {folder} {target} --to diffusers{beside}")
    return lines


def shown(path: pathlib.Path) -> str:
    """A path as short as it can be pasted: from the folder that the process is in, where it lies below that."""
    try:
        return str(path.relative_to(pathlib.Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _caption(samples: SampleSource) -> str | None:
    """The first words of a short caption among the first samples."""
    first = (samples[i] for i in range(min(len(samples), _SAMPLES)))
    captions = [text.caption.split() for sample in first for text in sample.texts]
    words = min(filter(None, captions), key=lambda words: len(" ".join(words)), default=None)
    return None if words is None else " ".join(words[:_WORDS])


def _encoders(config: ConfigDict, manifest: Manifest) -> dict[str, str | None]:
    """Options of tools.sample for what the workdir does not hold, and their folders where the run was told them."""
    found: dict[str, str | None] = {}
    kept = kept_encoders(manifest)
    if not kept["text_encoder"]:
        found["text-encoder"] = _first_folder(
            config.data.text_encoder, config.init.null_text, _beside(config.init_from, "text_encoder")
        )
    if not kept["vae"]:
        found["vae"] = _first_folder(config.data.vae, _beside(config.init_from, "vae"))
    return found


def _pipeline(config: ConfigDict) -> str | None:
    """The folder that holds both encoders, if there is one."""
    for folder in (os.path.dirname(config.data.vae.rstrip("/")), config.init_from):
        if _first_folder(_beside(folder, "vae")) and _first_folder(_beside(folder, "text_encoder")):
            return folder
    return None


def _beside(folder: str, name: str) -> str:
    return os.path.join(folder, name) if folder else ""


def _first_folder(*names: str) -> str | None:
    return next((name for name in names if name and os.path.isdir(name)), None)
