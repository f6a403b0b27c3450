"""The keys of a config by their dotted names, and settings from the command line."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from typing import Any

from pixart_jax.config.defaults import SETTINGS, ConfigDict
from pixart_jax.errors import InputError


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> dict:
    """{"model.depth": 28, ...}: every key of a config by its dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return flat


def check_keys(config: ConfigDict | Mapping, *, ranges: bool = False) -> None:
    """Raises InputError unless a config has every key there is, and no other, each with a value of its type.

    Args:
      ranges: values must be in range too.
    """
    values, settings = flatten(config), flatten(SETTINGS)
    for key, value in values.items():
        if key not in settings:
            raise unknown_key_error(key)
        default = settings[key].default
        if not _is_of_type_of(default, value):
            raise InputError(f"config.{key} = {_shown(value)}: must be of type {type(default).__name__}")
        if isinstance(value, str) and re.search(r"[\ud800-\udfff]", value):  # How Python holds other bytes.
            raise InputError(f"config.{key} = {value!a:.100}: holds bytes that are no UTF-8; name it in UTF-8")
        if ranges and not settings[key].range.holds(value):
            raise InputError(f"config.{key} = {_shown(value)}: {settings[key].range.cure}")
    if missing := [key for key in settings if key not in values]:
        raise InputError(f"config.{missing[0]} is missing; begin with default_config(), and change what is your own")


def _is_of_type_of(default: bool | int | float | str, value: object) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    kinds = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def unknown_key_error(key: str) -> InputError:
    """The error for a dotted key that there is not, with the nearest that there is."""
    known = list(flatten(SETTINGS))
    if inner := [name for name in known if name.startswith(f"{key}.")]:
        return InputError(f"config.{key} is no key, but has some: {', '.join(inner)}")
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
        raise unknown_key_error(key)
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
