"""Settings that name files and folders: of this machine's file systems, with home folders in place of ~."""

from __future__ import annotations

import pathlib
from typing import Any

from pixart_jax.config.settings import ConfigDict, flatten
from pixart_jax.files import local_path

# Of pictures or shards: several with commas between them, and perhaps a word for the kind of source before the path.
_SOURCES = ("data.source", "data.prior_source", "data.pair_source", "eval.source")
_KINDS = ("classes:",)
_PATHS = (
    "init_from",
    "init.null_text",
    "adapter.init_from",
    "objective.lpips_vgg",
    "objective.lpips_heads",
    "data.data_dir",
    "data.vae",
    "data.text_encoder",
    "data.control_dir",
    "data.hed",
    "eval.network_weights",
    "eval.reference",
    "eval.clip",
)


def resolve_paths(config: ConfigDict) -> None:
    """Writes the home folder in place of a ~ that begins a path in the config.

    Raises:
      InputError: one of the settings names a URL, of which a folder would be looked for here; names the key.
    """
    values = flatten(config)
    for key in (*_SOURCES, *_PATHS):
        if text := values[key].strip():
            parts = text.split(",") if key in _SOURCES else [text]
            config.update_from_flattened_dict({key: ",".join(_resolved(part, f"config.{key}") for part in parts)})
    # Else these are the prompts themselves.
    if values["sample.prompts"].strip().endswith(".txt") and "\n" not in values["sample.prompts"]:
        config.sample.prompts = _resolved(values["sample.prompts"], "config.sample.prompts")


def without_folders(config: ConfigDict) -> dict[str, Any]:
    """Every key of a config by its dotted name, and of paths the last part alone: a machine's folders are its own."""
    values = flatten(config)
    for key in (*_SOURCES, *_PATHS):
        values[key] = ",".join(_last(part) for part in values[key].split(","))
    if values["sample.prompts"].strip().endswith(".txt"):
        values["sample.prompts"] = _last(values["sample.prompts"])
    return values


def _last(text: str) -> str:
    kind = next((kind for kind in _KINDS if text.startswith(kind)), "")
    if not (rest := text.removeprefix(kind).strip()):
        return text
    path = pathlib.PurePath(rest)
    # What reads as a hub's id is no folder of anyone.
    return kind + (path.name if path.is_absolute() or len(path.parts) > 2 or rest.startswith((".", "~")) else str(path))


def _resolved(text: str, option: str) -> str:
    kind = next((kind for kind in _KINDS if text.startswith(kind)), "")
    rest = text.removeprefix(kind)
    if not rest.strip():
        return text
    path = local_path(rest, option)
    # Nothing else about it may change: "DIR/" and "owner/name" are not always paths.
    return kind + str(path) if rest.startswith("~") else text
