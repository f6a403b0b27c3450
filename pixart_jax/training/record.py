"""What a run writes down about itself: its settings, what it runs on and with, and what its step needs."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import types
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from pixart_jax import __version__
from pixart_jax.adapters.adapter import Params
from pixart_jax.config import ConfigDict, flatten, load_config
from pixart_jax.encoding.told import describe_encoder
from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import Fields, read_fields
from pixart_jax.training.advice import changed_schedule

RUN_FILE = "run.json"
PARAMETERS_FILE = "parameters.txt"
# Whose versions decide what a run computes.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str | None]:
    """Of Python and the packages that decide what a run computes; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def record_config(workdir: pathlib.Path, config: ConfigDict, step: int = 0) -> None:
    """Writes workdir/config.json, which sampling reads; says what changed since the run started, and what that does to
    the learning rate from `step` on. A damaged one, which nothing but that needs, is set aside."""
    path = workdir / "config.json"
    if (before := _config_before(workdir, path)) is not None:
        new = flatten(config)
        for key, value in flatten(before).items():
            if new[key] != value:
                logging.warning("config.%s was %r when this run started, now it is %r", key, value, new[key])
        if step and (said := changed_schedule(before, config, step)):
            logging.warning("%s", said)
    write_json(path, config.to_dict())


def told_encoders(config: ConfigDict) -> dict[str, dict[str, str]]:
    """The converted encoders that a config names, by kind; whoever draws from the run takes them where they are."""
    named = {
        "text_encoder": (config.data.text_encoder, config.init.null_text),
        "vae": (config.data.vae,),
    }
    found = {}
    for kind, names in named.items():
        folder = next((pathlib.Path(name) for name in names if name and pathlib.Path(name).is_dir()), None)
        if folder:
            found[kind] = describe_encoder(folder)
    return found


def _config_before(workdir: pathlib.Path, path: pathlib.Path) -> ConfigDict | None:
    try:
        return load_config(workdir) if path.exists() else None
    except InputError as error:
        _set_aside(path, error)
        return None


def _set_aside(path: pathlib.Path, error: InputError) -> None:
    """Keeps a damaged file, which is about to be written anew, under another name."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    logging.error("%s IS DAMAGED; it is kept as %s, and written anew: %s", path, aside, error)


def record_run(
    workdir: pathlib.Path,
    params: Params,
    frozen: Params,
    compiled: jax.stages.Compiled,
    encoders: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
    *,
    remat: str = "",
) -> None:
    """Writes workdir/run.json: what code this is, versions of packages, devices, number of parameters, the step's
    memory by the compiler, and the encoders.

    Says which versions are others than when the run last started: its numbers may differ from here on.

    Args:
      params, frozen: what is trained and what is only held; shapes are enough.
      compiled: the training step. Its `argument_bytes` (state and batch) and `scratch_bytes` are per device, None where
        the compiler does not say.
      encoders: `told_encoders`. One that was told before, and is not now, is kept.
      remat: what `config.model.remat` came to.
    """
    memory = compiled.memory_analysis()
    device = jax.devices()[0]
    path = workdir / RUN_FILE
    installed = versions()
    commit = code_commit()
    before = _before(workdir)
    for name, version in before.get("versions", {}).items():
        if installed.get(name) != version:
            logging.warning("%s was %s when this run last started, now it is %s", name, version, installed.get(name))
    # The version tells the code where there is no commit.
    code, last = commit or __version__, before.get("commit") or before.get("version")
    if last not in (None, code):
        logging.warning("pixart_jax was %s when this run last started, now it is %s", last, code)
    write_json(
        path,
        {
            "commit": commit,
            "version": __version__,
            "versions": installed,
            "device_kind": device.device_kind,
            "num_devices": jax.device_count(),
            "num_processes": jax.process_count(),
            "num_parameters": _size((params, frozen)),
            "num_trained": _size(params),
            "argument_bytes": getattr(memory, "argument_size_in_bytes", None),
            "scratch_bytes": getattr(memory, "temp_size_in_bytes", None),
            "remat": remat,
            "encoders": {**(kept if isinstance(kept := before.get("encoders"), dict) else {}), **encoders},
        },
    )


def record_parameters(workdir: pathlib.Path, params: Params) -> None:
    """Writes workdir/parameters.txt, a table of what is trained: name, shape, dtype, size and split; logs its total.

    Args:
      params: arrays, or their shapes, dtypes and shardings.
    """
    rows = [("name", "shape", "dtype", "size", "split")]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(getattr(key, "key", key)) for key in keys)
        split = getattr(leaf.sharding, "spec", None)
        rows.append((name, str(leaf.shape), str(leaf.dtype), f"{leaf.size:,}", str(tuple(split or ()))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    path = workdir / PARAMETERS_FILE
    total = f"{_size(params):,} parameters are trained"
    text = "\n".join([*lines, total]) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    logging.info("%s; each of them: %s", total, path.name)


def _size(tree: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _before(workdir: pathlib.Path) -> dict[str, Any]:
    """What the run wrote when it last started. A damaged file, which nothing but warnings needs, is set aside."""
    path = workdir / RUN_FILE
    if not path.exists():
        return {}
    try:
        found = read_fields(path, "nothing in it is needed to train")
        for key in ("commit", "version"):
            found.text(key, None)
        return {**found, "versions": dict(found.fields("versions", Fields(path, {}, "")))}
    except InputError as error:
        _set_aside(path, error)
        return {}


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """What `record_run` wrote when the run last started."""
    return json.loads((workdir / RUN_FILE).read_text(encoding="utf-8"))


def code_commit(file: pathlib.Path = pathlib.Path(__file__)) -> str | None:
    """Git's commit of this code, with "-dirty" where it has been changed since; None where it is no git checkout.

    Args:
      file: part of the code.
    """
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    commands = (
        # The code may lie in a folder of another project's checkout.
        ["ls-files", "--error-unmatch", file.name],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        for command in commands:
            output = subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """A small file that is there whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
