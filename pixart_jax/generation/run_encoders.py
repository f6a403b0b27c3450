"""The encoders to draw with from a run: those it keeps, those it was told, or those that are named now."""

from __future__ import annotations

import os
import pathlib
import shlex
from typing import Any

from absl import logging

from pixart_jax.commands import command
from pixart_jax.config import ConfigDict
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.encoding.registry import kept_encoders
from pixart_jax.encoding.told import KINDS, find_told
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_fields
from pixart_jax.training.record import RUN_FILE

# Stands for a folder that nobody has named.
_FOLDER = "DIR"


def encoders_of_run(
    workdir: pathlib.Path, config: ConfigDict, manifest: Manifest, given: dict[str, Any]
) -> dict[str, str | os.PathLike | None]:
    """The folders of converted encoders by kind; None for one that the run keeps.

    Args:
      config, manifest: of the run.
      given: those that are named, by kind, or None.

    Raises:
      InputError: one is missing; with the whole command that names it.
    """
    kept = kept_encoders(manifest)
    found, why = dict(given), {}
    recorded = _recorded(workdir)
    for kind, name in KINDS.items():
        if given[kind] or kept[kind]:
            continue
        found[kind], why[kind] = find_told(recorded, kind)
        if found[kind]:
            logging.info("%s: %s, which the run was told", name, found[kind])
    missing = [kind for kind in why if not found[kind]]
    if not missing:
        return found
    options = []
    for kind in KINDS:
        if not kept[kind]:
            folder = given[kind] or found[kind] or _likely(config, kind) or _FOLDER
            options.append(f" --{kind.replace('_', '-')} {shlex.quote(str(folder))}")
    reasons = "; ".join(f"{KINDS[kind]}: {why[kind]}" for kind in missing)
    raise InputError(
        f"{workdir} does not keep the {' and the '.join(KINDS[kind] for kind in missing)} that it needs to draw "
        f"({reasons}). Name what tools.convert wrote of them:\n  {command('sample')} --checkpoint "
        f'{shlex.quote(str(workdir))} --prompt "..."{"".join(options)}'
    )


def _recorded(workdir: pathlib.Path) -> dict[str, Any]:
    """What run.json says about encoders; nothing, of a run that was begun before it did."""
    try:
        recorded = read_fields(workdir / RUN_FILE, "it is not needed").get("encoders")
    except InputError:
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _likely(config: ConfigDict, kind: str) -> str | None:
    """A folder that the run's config names, or that lies beside the weights that it started from."""
    names = [config.data[kind], config.init.null_text if kind == "text_encoder" else ""]
    names += [os.path.join(config.init_from, kind)] if config.init_from else []
    return next((name for name in names if name and os.path.isdir(name)), None)
