"""Configs in files: those that people write, in Python, and those that runs have recorded."""

from __future__ import annotations

import difflib
import importlib.util
import pathlib
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from pixart_jax.config.defaults import SETTINGS, ConfigDict
from pixart_jax.config.settings import check_keys, override, unknown_key_error
from pixart_jax.errors import InputError
from pixart_jax.files import local_path
from pixart_jax.files.typed_json import Fields, read_fields


def find_config(name: str) -> pathlib.Path:
    """The config file that a name stands for: a path, or one of configs/ without its folder and ".py".

    Raises:
      InputError: there is none; with the names that are near.
    """
    path = local_path(name, "--config")
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
      InputError: there is no such file, or what it does cannot be: with the line, and of a key that does not exist the
        nearest; or it returns something else than a config; or as `override`.
    """
    path = find_config(name)
    module_spec = importlib.util.spec_from_file_location("run_config", path)
    if module_spec is None or module_spec.loader is None:
        cure = "name a Python file (*.py) with a get_config(); see configs/"
        raise InputError(f"--config={path}: not a Python file; {cure}")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError("has no get_config(); see configs/ for some that do")
        config = module.get_config()
        if not isinstance(config, ConfigDict):
            cure = "let it begin with `config = default_config()` and end with `return config`"
            raise InputError(f"get_config() returns {_kind(config)}; {cure}")
        check_keys(config)
    except InputError as error:
        raise InputError(f"{path}{_line_with_key(path, error)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise _error_of_file(path, error) from error
    for setting in settings:
        override(config, setting)
    return config


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}, and no config"


def _line_with_key(path: pathlib.Path, error: InputError) -> str:
    """Where in the file the key is first named that the error begins with, as ", line N"; empty if nowhere."""
    key = re.search(r"config\.(?:\w+\.)*(\w+)", str(error))
    lines = path.read_text(encoding="utf-8").splitlines() if key else []
    number = next((i for i, line in enumerate(lines, 1) if key and re.search(rf"\b{key[1]}\b", line)), None)
    return f", line {number}" if number else ""


def _error_of_file(path: pathlib.Path, error: BaseException) -> InputError:
    """What a config file fails of, with the line and what stands there."""
    first, last = _lines_of(path, error)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[first - 1 : last] if first else []
    except (OSError, ValueError):
        lines = []
    key = _unknown_key(error)
    if key and (place := next((i for i, line in enumerate(lines) if re.search(rf"\b{key}\b", line)), None)) is not None:
        return InputError(f"{path}, line {first + place}: {unknown_key_error(_dotted(key, lines[: place + 1]))}")
    where = f"{path}, line {first}" if first else f"{path}"
    shown = f"; there stands: {lines[0].strip()[:200]}" if lines else ""
    if isinstance(error, ModuleNotFoundError):
        return InputError(f"{where}: {error}; start where it lies, or install it")
    return InputError(f"{where}: {_words(error)}{shown}")


def _unknown_key(error: BaseException) -> str | None:
    """The key that a config is said not to have, by ml_collections or by the class that stands in for it."""
    patterns = (
        r"config key (\w+)",
        r"Key [\"'](\w+)[\"'] does not exist",
        r"^\W*(\w+)\b.*Did you mean",
        r"^\W*(\w+)\W*$",
    )
    for pattern in patterns:
        if isinstance(error, KeyError | AttributeError) and (found := re.search(pattern, str(error))):
            return found[1]
    return None


def _words(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}"
    if mismatch := re.match(r"Could not override field '(\w+)'.*?\. (.*) is of original type .* '(.*?)'>$", str(error)):
        key, value, kind = mismatch.groups()
        kind = kind.rpartition(".")[2]
        cure = "is a section: set the keys in it" if kind == "ConfigDict" else f"must be of type {kind}"
        return f"{key} = {value[:100]}: {cure}"
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def _lines_of(path: pathlib.Path, error: BaseException) -> tuple[int, int]:
    """The first and the last line of the statement in the file that an error comes from; zeros where none does."""
    name = str(path.absolute())
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno or 0, error.lineno or 0
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return (frames[-1].lineno or 0, frames[-1].end_lineno or frames[-1].lineno or 0) if frames else (0, 0)


def _dotted(key: str, lines: list[str]) -> str:
    """The dotted name of a key that a statement sets, as far as its text tells: config.train.update(... key=...)."""
    sections = [name for name, value in SETTINGS.items() if isinstance(value, dict)]
    for chain in re.findall(r"\w+((?:\.\w+)+)", " ".join(lines)):
        names = chain[1:].split(".")
        if key in names:
            return ".".join(name for name in names if name != "update")
        if names[0] in sections:
            return ".".join([*(name for name in names if name != "update"), key])
    return key


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a run recorded.

    Raises:
      InputError: no run has started there, or the file is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: {workdir} is not the workdir of a run")
    cure = "copy it from a backup, or give the command of the run again, which writes it anew"
    try:
        values = _merged(SETTINGS, read_fields(path, cure))
        check_keys(values, ranges=True)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path} is damaged: {error}; {cure}") from error
    return ConfigDict(values)


def _merged(settings: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The fields, with the default of every key that a run of an older version did not know."""
    known = {
        key: _merged(inner, fields.fields(key, Fields(fields.path, {}, fields.cure)))
        if isinstance(inner, dict)
        else fields.get(key, inner.default)
        for key, inner in settings.items()
    }
    return {**fields.content, **known}
