"""Configs from files and command lines, and their keys by dotted names."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from pixart_jax.config.defaults import ConfigDict, default_config
from pixart_jax.errors import InputError


def find_config(name: str) -> pathlib.Path:
    """The config file that a name stands for: a path, or one of configs/ without its folder and ".py".

    Raises:
      InputError: there is none; with the names that are near.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    named = {path.stem: path for path in _named_configs()}
    if name in named:
        return named[name]
    near = difflib.get_close_matches(path.stem, named, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(named)}"
    raise InputError(f"--config={name}: no such file, and no config of this name; {hint}")


def _named_configs() -> list[pathlib.Path]:
    package = pathlib.Path(__file__).parents[1]
    # Installed, the folder is part of the package; in a checkout it lies beside it.
    folder = next((folder / "configs" for folder in (package, package.parent) if (folder / "configs").is_dir()), None)
    return sorted(path for path in folder.glob("*.py") if path.stem != "__init__") if folder else []


def read_config_file(name: str, settings: Iterable[str] = ()) -> ConfigDict:
    """The ConfigDict of a config file.

    Args:
      name: see `find_config`.
      settings: each a --config.key=value, see `override`.

    Raises:
      InputError: no such file, or it sets a key that does not exist; or as `override`.
    """
    path = find_config(name)
    module_spec = importlib.util.spec_from_file_location("run_config", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config={path}: not a Python file (*.py); see configs/")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config()
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: {error}; start where it lies, or install it") from error
    except (AttributeError, KeyError) as error:
        raise InputError(f"{path}: {error}") from error
    for setting in settings:
        override(config, setting)
    return config


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a run recorded.

    Raises:
      InputError: no run has started there.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: {workdir} is not the workdir of a run")
    return ConfigDict(_merged(default_config(), json.loads(path.read_text(encoding="utf-8"))))


def _merged(defaults, values: dict) -> dict:
    """`values`, with the default of every key that a run of an older version did not know."""
    known = {key: value for key, value in defaults.items() if key not in values}
    nested = {key: value for key, value in values.items() if isinstance(value, dict) and key in defaults}
    return {**known, **values, **{key: _merged(defaults[key], value) for key, value in nested.items()}}


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """{"model.depth": 28, ...}: every key of a config by its dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def unknown_key_error(key: str, config: ConfigDict) -> InputError:
    """The error for a dotted key that is not in the config, with the nearest that is."""
    known = list(flatten(config))
    # Compare last parts as well: `lr` under the wrong section should still find its home.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
        name for name in known if name.split(".")[-1] == key.split(".")[-1]
    ]
    hint = f"did you mean config.{near[0]}?" if near else f"known keys: {', '.join(known)}"
    return InputError(f"unknown config key config.{key}; {hint}")


def override(config: ConfigDict, setting: str) -> None:
    """Applies one --config.key=value, where absl's flags are not at hand.

    Raises:
      InputError: another form, an unknown key, or a value of another type than the key's.
    """
    name, separator, text = setting.partition("=")
    key = name.removeprefix("--config.")
    if key == name or not separator:
        raise InputError(f"what is {setting!r}? Settings are changed by --config.key=value")
    known = flatten(config)
    if key not in known:
        raise unknown_key_error(key, config)
    value: Any = text
    if not isinstance(known[key], str):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if isinstance(known[key], float) and type(value) is int:
            value = float(value)
        if type(value) is not type(known[key]):
            raise InputError(f"config.{key} = {text!r}: must be of type {type(known[key]).__name__}")
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value


def require_setting(config: ConfigDict, ok: bool, key: str, cure: str) -> None:
    """Raises InputError with the dotted key, its value and the cure, unless `ok`."""
    if not ok:
        raise InputError(f"config.{key} = {flatten(config)[key]!r}: {cure}")
