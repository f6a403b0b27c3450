"""A training run as it is now, read from its workdir while it writes there: nothing of it is changed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from pixart_jax.errors import InputError
from pixart_jax.files import open_regular, reason
from pixart_jax.files.typed_json import read_fields

# Of a file of lines: more than a million logged steps have.
_MAX_BYTES = 1 << 28
# What is logged beside the losses.
RATE = "images_per_second"
# A run that has written nothing for so many times as long as between its last two lines, but not less than this, is
# said to be quiet.
_QUIET_TIMES, _QUIET_SECONDS = 10, 120
_NAME = re.compile(r"step_(\d{1,12})\.png")


@dataclasses.dataclass(frozen=True, eq=False)
class RunView:
    """What a workdir holds.

    Attributes:
      name: of its folder.
      curves: (step, value) pairs by the file's name and the scalar's: {"metrics": {"loss": [...]}}.
      pictures: the PNG after each step, by what it shows: {"samples": {2000: path}}.
      step, num_steps: how far it is, and how far it is to go; 0 where that is not known.
      rate: pictures a second lately; seconds_left from it, None where nothing is known.
      is_over: whether it has come to its end.
      problems: what cannot be read, and whether it seems to have stopped.
    """

    name: str
    curves: Mapping[str, Mapping[str, list[tuple[int, float]]]]
    pictures: Mapping[str, Mapping[int, pathlib.Path]]
    step: int
    num_steps: int
    rate: float | None
    seconds_left: float | None
    is_over: bool
    problems: tuple[str, ...]


def check_workdir(workdir: pathlib.Path) -> None:
    """Raises InputError unless a run has begun there."""
    if not (workdir / "config.json").is_file():
        raise InputError(f"--workdir {workdir}: is not the workdir of a run: it has no config.json")


def read_run(workdir: pathlib.Path) -> RunView:
    """What there is by now; what cannot be read is among the problems, and the next look may find it."""
    problems: list[str] = []
    curves = {}
    for path in _files(workdir, ".jsonl"):
        rows = _rows(path, problems)
        names = dict.fromkeys(name for _, row in rows for name in row)
        curves[path.stem] = {name: [(step, row[name]) for step, row in rows if name in row] for name in names}
    num_steps = batch_size = 0
    try:
        config = read_fields(workdir / "config.json", "the run writes it when it begins")
        num_steps, batch_size = (int(config[group][name]) for group, name in _TOLD)
    except (InputError, KeyError, TypeError, ValueError) as error:
        problems.append(f"config.json cannot be read: {str(error)[:200]}")
    metrics = curves.get("metrics", {})
    step = max((points[-1][0] for points in metrics.values() if points), default=0)
    rate = metrics[RATE][-1][1] if metrics.get(RATE) else None
    is_over = (workdir / "results.json").exists() and step >= num_steps
    left = (num_steps - step) * batch_size / rate if rate and num_steps and not is_over else None
    if not is_over and (quiet := _quiet(workdir / "metrics.jsonl", metrics.get(RATE, []), batch_size)):
        problems.append(quiet)
    pictures = _pictures(workdir)
    for name, pages in pictures.items() if is_over else ():
        if (last := workdir / f"{name}.png").is_file():  # The last of a run lies beside the others' folder.
            pages[step] = last
    return RunView(workdir.absolute().name, curves, pictures, step, num_steps, rate, left, is_over, tuple(problems))


_TOLD = (("train", "num_steps"), ("data", "batch_size"))


def _files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    try:
        return sorted(pathlib.Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(suffix))
    except OSError:  # It may be removed or renamed while it is looked at.
        return []


def _rows(path: pathlib.Path, problems: list[str]) -> list[tuple[int, dict[str, float]]]:
    """The finite numbers of each line, by step; the last line may be half written."""
    try:
        with open_regular(path) as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {reason(error)}")
        return []
    rows, damaged = [], 0
    for number, line in enumerate(lines, 1):
        try:
            row: dict[str, Any] = json.loads(line)
            step = row.pop("step")
            if not isinstance(step, int):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged += number < len(lines)
            continue
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        rows.append((step, {name: value for name, value in numbers.items() if abs(value) < float("inf")}))
        if len(numbers) > len(rows[-1][1]):
            problems.append(f"{path.name}: a number that is not finite at step {step}")
    if damaged:
        problems.append(f"{path.name}: {damaged} damaged lines are left out")
    return rows


def _pictures(workdir: pathlib.Path) -> dict[str, dict[int, pathlib.Path]]:
    found = {}
    try:
        folders = sorted(entry.path for entry in os.scandir(workdir) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return {}
    for folder in map(pathlib.Path, folders):
        pages = {int(match[1]): path for path in _files(folder, ".png") if (match := _NAME.fullmatch(path.name))}
        if pages:
            found[folder.name] = dict(sorted(pages.items()))
    return found


def _quiet(path: pathlib.Path, rates: list[tuple[int, float]], batch_size: int) -> str:
    """Says that nothing has been written for longer than a run at work takes; "" otherwise."""
    if len(rates) < 2 or rates[-1][1] <= 0:
        return ""
    try:
        seconds = time.time() - path.stat().st_mtime
    except OSError:
        return ""
    usual = (rates[-1][0] - rates[-2][0]) * batch_size / rates[-1][1]
    if seconds < max(_QUIET_SECONDS, _QUIET_TIMES * usual):
        return ""
    return f"nothing was logged for {seconds / 60:.0f} minutes: it has stopped, or evaluates"
