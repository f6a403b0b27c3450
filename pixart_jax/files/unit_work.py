"""Long work in units that are whole or absent: killed and started again it goes on, and several processes share it.

Unit k is items k·S to (k+1)·S − 1 of a source. What it becomes depends on its items and the settings alone: not on
other units, nor on which process makes it, nor on how often the run was killed. Processes share the units without
talking to each other: process i of P takes every P-th, and whoever finishes last publishes the whole.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pixart_jax.errors import InputError
from pixart_jax.files import fsync, write_atomically
from pixart_jax.files.locks import hold_share
from pixart_jax.files.typed_json import Fields, read_fields

RECIPE_FILE, SKIPPED_FILE = "recipe.json", "skipped.jsonl"


class Skipped(NamedTuple):
    """An item of the source of which nothing is made, and why; `place` is its index in the source."""

    key: str
    reason: str
    message: str
    place: int


class Units(Protocol):
    """What makes the units, and a whole of them.

    Attributes:
      num_items: of the source.
      items_per_unit: S.
      recipe: JSON-able; all that the units depend on. A run is gone on with only under the same recipe, but for its
        "fingerprint", the source's: `digest` tells which units are to be made again.
    """

    @property
    def num_items(self) -> int: ...

    @property
    def items_per_unit(self) -> int: ...

    @property
    def recipe(self) -> Mapping[str, Any]: ...

    def make(self, number: int, items: range, work: pathlib.Path) -> tuple[Mapping[str, Any], list[Skipped]]:
        """What the file of unit `number` is to hold, JSON-able, and the items that are not in it.

        Larger files may be written into a folder of `work`; the unit is there when this has returned.
        """

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        """Those of the items, which were skipped before, that cannot be used now either."""

    def digest(self, items: range) -> str:
        """Of what the items are; another one after they have changed."""

    def assemble(self, made: Written, work: pathlib.Path) -> pathlib.Path:
        """A folder in `work` that holds the whole, made of all units; of what a kill left of it, it may be made anew.

        Raises:
          InputError: nothing can be made of them.
        """


@dataclasses.dataclass(frozen=True)
class Written:
    """The units that are made; read from disk each time that they are iterated over."""

    work: pathlib.Path
    total: int

    def __iter__(self) -> Iterator[Fields]:
        return (_read_unit(self.work, number) for number in range(self.total))

    def skipped(self) -> Iterator[Skipped]:
        return (Skipped(*row) for unit in self for row in unit["skipped"])

    def reasons(self) -> dict[str, int]:
        """How many items were skipped, by reason."""
        return dict(sorted(collections.Counter(item.reason for item in self.skipped()).items()))


@dataclasses.dataclass(frozen=True)
class Tally:
    """How far this process is: units and items done and to be done, and items skipped; None where that is not known."""

    units: int
    total_units: int
    items: int
    total_items: int
    skipped: int | None


def work_through(
    units: Units,
    out: str | os.PathLike,
    *,
    process_index: int = 0,
    process_count: int = 1,
    report: Callable[[Tally], None] = lambda tally: None,
) -> bool:
    """Makes this process's share of the units that are not made yet, and publishes the whole when none is left.

    Everything is written to the hidden folder `.NAME.incomplete` beside `out`, which gets the name when all of it is
    on disk, with the recipe and a list of what was skipped. Call it again with the same arguments to go on after a
    kill, or after mending what was skipped: units are made again whose items have changed, or of which an item that
    was skipped can be used now.

    Args:
      out: must not exist.
      process_index, process_count: this process among those that share the work, and the file system.
      report: told after every unit.

    Returns:
      Whether the whole is published; False when other processes have not finished.

    Raises:
      InputError: `out` exists, was begun with another recipe, is being written by another process with the same share,
        cannot be written, or nothing can be made of the units.
    """
    out = pathlib.Path(out).absolute()
    work = _open_work(out, units)
    with hold_share(work / "locks", process_index, process_count, f"--out {out}") as mine:
        began = mine.stat().st_mtime_ns
        try:
            return _work_through(work, out, units, range(process_index, _total(units), process_count), began, report)
        except OSError as error:
            raise InputError(
                f"{work} cannot be written: {error.strerror or error}; free some space, or allow it, and "
                "give the same command again, which goes on"
            ) from error


def skipped_rows(skipped: Iterator[Skipped]) -> Iterator[bytes]:
    """Lines of `skipped.jsonl`."""
    for item in skipped:
        told = {"key": item.key, "reason": item.reason, "message": item.message}
        yield (json.dumps(told, ensure_ascii=False) + "\n").encode()


def _total(units: Units) -> int:
    return -(-units.num_items // units.items_per_unit)


def _items_of(units: Units, number: int) -> range:
    start = number * units.items_per_unit
    return range(start, min(start + units.items_per_unit, units.num_items))


def _work_through(
    work: pathlib.Path, out: pathlib.Path, units: Units, mine: range, began: int, report: Callable[[Tally], None]
) -> bool:
    there = [number for number in mine if _unit_file(work, number).exists()]
    again = [number for number in there if not _is_up_to_date(work, number, units)]
    for number in again:
        _unit_file(work, number).unlink()
    if again:
        logging.getLogger(__name__).warning(
            "%d of %d units that were done are made again: items have changed, or can be used that were skipped",
            len(again),
            len(there),
        )
    done = skipped = 0
    total_items = sum(len(_items_of(units, number)) for number in mine)
    for count, number in enumerate(mine, 1):
        items = _items_of(units, number)
        if not _unit_file(work, number).exists():
            _write_unit(work, number, items, units)
        done += len(items)
        skipped += len(_read_unit(work, number)["skipped"])
        report(Tally(count, len(mine), done, total_items, skipped))
    for number in range(_total(units)):
        file = _unit_file(work, number)
        if not file.exists():
            return False
        # Another process's, of before this run: it may be about to make it again.
        if number not in mine and file.stat().st_mtime_ns < began and not _is_up_to_date(work, number, units):
            return False
    _publish(work, out, units)
    return True


def _is_up_to_date(work: pathlib.Path, number: int, units: Units) -> bool:
    """Whether a unit is what it would be if it were made now, the reasons of what is skipped included."""
    try:
        unit = _read_unit(work, number)
        skipped = [Skipped(*row) for row in unit["skipped"]]
        if unit["digest"] != units.digest(_items_of(units, number)):
            return False
        return units.still_skipped([item.place for item in skipped]) == skipped
    except (InputError, KeyError, TypeError):  # Of another version, or damaged.
        return False


def _read_unit(work: pathlib.Path, number: int) -> Fields:
    return read_fields(_unit_file(work, number), "remove it, and give the same command again", 1 << 30)


def _open_work(out: pathlib.Path, units: Units) -> pathlib.Path:
    """The folder of what is not finished, new or of a run that was interrupted."""
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or name another folder")
    work = out.with_name(f".{out.name}.incomplete")
    recipe = _recipe_text(units)
    try:
        for name in ("units", "locks"):
            (work / name).mkdir(parents=True, exist_ok=True)
        if not (work / RECIPE_FILE).exists():
            write_atomically(work / RECIPE_FILE, lambda file: file.write(recipe.encode()))
    except OSError as error:
        raise InputError(f"{work} cannot be written: {error.strerror}") from error
    begun = dict(read_fields(work / RECIPE_FILE, "remove the folder it lies in, and begin again"))
    wanted = json.loads(recipe)
    for values in (begun, wanted):
        values.pop("fingerprint", None)
    if changed := [key for key in sorted(begun | wanted) if begun.get(key) != wanted.get(key)]:
        rows = [f"{key}: {begun.get(key)!r}, now {wanted.get(key)!r}" for key in changed]
        raise InputError(
            f"{work} was begun otherwise; go on as it was begun, or remove it, or name another folder:\n  "
            + "\n  ".join(rows)
        )
    return work


def _recipe_text(units: Units) -> str:
    text = json.dumps(units.recipe, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # Of a source whose name is no UTF-8.


def _unit_file(work: pathlib.Path, number: int) -> pathlib.Path:
    return work / "units" / f"{number:06d}.json"


def _write_unit(work: pathlib.Path, number: int, items: range, units: Units) -> None:
    """What belongs to it first, then the file that says that it is whole."""
    digest = units.digest(items)  # Before they are read: what changes meanwhile is seen the next time.
    made, skipped = units.make(number, items, work)
    unit = json.dumps({"items": len(items), "digest": digest, "skipped": skipped, **made})
    write_atomically(_unit_file(work, number), lambda file: file.write(unit.encode()))


def _publish(work: pathlib.Path, out: pathlib.Path, units: Units) -> None:
    """Makes one of the units, and gives it its name. Whichever process comes second finds nothing left to do."""
    try:
        lock = (work / "lock").open("w", encoding="utf-8")
    except FileNotFoundError:
        return
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return
        written = Written(work, _total(units))
        root = units.assemble(written, work)
        write_atomically(root / SKIPPED_FILE, lambda file: file.writelines(skipped_rows(written.skipped())))
        recipe = _recipe_text(units).encode()
        write_atomically(root / RECIPE_FILE, lambda file: file.write(recipe))
        fsync(root)
        root.rename(out)
        fsync(out.parent)
        shutil.rmtree(work)
