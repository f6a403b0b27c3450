"""Pictures and captions to feature shards: in units that are whole or absent, so that a killed run goes on.

Unit k is items k·S to (k+1)·S − 1 of the source. What it becomes depends on its items, the encoders and the settings
alone: not on other units, nor on which process encodes it, nor on how often the run was killed. Several processes share
the units without talking to each other: process i of P takes every P-th, and whoever finishes last publishes the whole.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from absl import logging

from pixart_jax.data.shards.manifest import Manifest, Shard
from pixart_jax.data.shards.records import Sample
from pixart_jax.data.shards.shard_files import assemble, write_shard
from pixart_jax.encoding.skipped import SKIPPED_FILE
from pixart_jax.errors import InputError
from pixart_jax.files import fsync, write_atomically
from pixart_jax.files.locks import hold_share
from pixart_jax.files.typed_json import read_fields

RECIPE_FILE = "recipe.json"
# Name of a set that is alone.
ONLY = "set"


class Skipped(NamedTuple):
    """An item of the source that is not in the set, and why; `place` is its index in the source."""

    key: str
    reason: str
    message: str
    place: int


class Units(Protocol):
    """What makes the samples of a unit.

    Attributes:
      num_items: of the source.
      items_per_unit: S.
      manifests: of each set to be written, without shards, by the name of its folder below the output; the only one,
        ONLY, is the output itself.
      recipe: JSON-able; all that the samples depend on. A run is gone on with only under the same recipe, but for its
        "fingerprint", the source's: `digest` tells which units are to be made again.
    """

    num_items: int
    items_per_unit: int

    @property
    def manifests(self) -> Mapping[str, Manifest]: ...

    @property
    def recipe(self) -> Mapping[str, Any]: ...

    def samples(self, items: range) -> tuple[dict[str, list[Sample]], list[Skipped]]:
        """Samples of each set in the order of `items`, and the items that are in none."""

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        """Those of the items, which were skipped before, that cannot be used now either."""

    def digest(self, items: range) -> str:
        """Of what the items are; another one after they have changed."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """How far this process is: units and items done and to be done, and items skipped."""

    units: int
    total_units: int
    items: int
    total_items: int
    skipped: int


def extract(
    units: Units,
    out: str | os.PathLike,
    *,
    process_index: int = 0,
    process_count: int = 1,
    report: Callable[[Tally], None] = lambda tally: None,
) -> bool:
    """Encodes this process's share of the units that are not done yet, and publishes the sets when none is left.

    Everything is written to the hidden folder `.NAME.incomplete` beside `out`, which gets the name when all of it is
    on disk. Call it again with the same arguments to go on after a kill, or after mending what was skipped: units are
    made again whose items have changed, or of which an item that was skipped can be used now.

    Args:
      out: must not exist. Of one set its folder, of several the folder above them.
      process_index, process_count: this process among those that share the work, and the file system.
      report: told after every unit.

    Returns:
      Whether the sets are published; False when other processes have not finished.

    Raises:
      InputError: `out` exists, was begun with another recipe, is being written by another process with the same share,
        cannot be written, or no item could be used.
    """
    out = pathlib.Path(out).absolute()
    work = _open_work(out, units)
    with hold_share(work / "locks", process_index, process_count, f"--out {out}") as mine:
        began = mine.stat().st_mtime_ns
        try:
            return _extract(work, out, units, range(process_index, _total(units), process_count), began, report)
        except OSError as error:
            raise InputError(
                f"{work} cannot be written: {error.strerror or error}; free some space, or allow it, and "
                "give the same command again, which goes on"
            ) from error


def _total(units: Units) -> int:
    return -(-units.num_items // units.items_per_unit)


def _items_of(units: Units, number: int) -> range:
    start = number * units.items_per_unit
    return range(start, min(start + units.items_per_unit, units.num_items))


def _extract(
    work: pathlib.Path, out: pathlib.Path, units: Units, mine: range, began: int, report: Callable[[Tally], None]
) -> bool:
    there = [number for number in mine if _unit_file(work, number).exists()]
    again = [number for number in there if not _is_up_to_date(work, number, units)]
    for number in again:
        _unit_file(work, number).unlink()
    if again:
        logging.warning(
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
    _publish(work, out, units, _total(units))
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


def _read_unit(work: pathlib.Path, number: int) -> Mapping[str, Any]:
    return read_fields(_unit_file(work, number), "remove it, and give the same command again", 1 << 30)


def _open_work(out: pathlib.Path, units: Units) -> pathlib.Path:
    """The folder of what is not finished, new or of a run that was interrupted."""
    if out.exists():
        raise InputError(f"{out} exists already; remove it, or name another folder")
    work = out.with_name(f".{out.name}.incomplete")
    recipe = _recipe_text(units)
    try:
        for name in ("units", "locks", *(f"sets/{name}" for name in units.manifests)):
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
    """Shards first, then the file that says that they are whole."""
    digest = units.digest(items)  # Before they are read: what changes meanwhile is seen the next time.
    sets, skipped = units.samples(items)
    parts = {}
    for name, samples in sets.items():
        if samples:
            path = work / "sets" / name / f"shard-{number:05d}.array_record"
            shard, histogram = write_shard(path, samples, units.manifests[name])
            parts[name] = {"shard": dataclasses.asdict(shard), "histogram": histogram}
    made = {"items": len(items), "digest": digest, "skipped": skipped, "parts": parts}
    unit = json.dumps(made, ensure_ascii=False)
    write_atomically(_unit_file(work, number), lambda file: file.write(unit.encode()))


def _publish(work: pathlib.Path, out: pathlib.Path, units: Units, total: int) -> None:
    """Makes the shards sets, and gives them their name. Whichever process comes second finds nothing left to do."""
    try:
        lock = (work / "lock").open("w", encoding="utf-8")
    except FileNotFoundError:
        return
    with lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return
        written = [_read_unit(work, number) for number in range(total)]
        skipped = [Skipped(*row) for unit in written for row in unit["skipped"]]
        counts = dict(sorted(collections.Counter(item.reason for item in skipped).items()))
        ready = work / "ready"
        ready.mkdir(exist_ok=True)
        for name, manifest in units.manifests.items():
            if (ready / name).exists():  # A kill came between this and the end.
                continue
            if not any(name in unit["parts"] for unit in written):
                raise InputError(
                    f"{out}: not one of {units.num_items} items could be used; {counts} were skipped, such as "
                    f"{skipped[0].key}: {skipped[0].message}. Mend that and give the same command again; {work} has "
                    "what was found out so far"
                )
            parts = [
                (Shard(**unit["parts"][name]["shard"]), unit["parts"][name]["histogram"])
                for unit in written
                if name in unit["parts"]
            ]
            keep = {shard.file for shard, _ in parts}
            for path in (work / "sets" / name).iterdir():  # Of units that were made again with less, or killed.
                if path.name.removesuffix(".buckets.npy") not in keep:
                    path.unlink()
            whole = dataclasses.replace(manifest, skipped=counts)
            assemble(work / "sets" / name, ready / name, whole, parts)
        lone = ready / ONLY
        root = lone if lone.exists() else ready
        told = ({"key": item.key, "reason": item.reason, "message": item.message} for item in skipped)
        rows = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in told)
        write_atomically(root / SKIPPED_FILE, lambda file: file.write(rows.encode()))
        recipe = _recipe_text(units).encode()
        write_atomically(root / RECIPE_FILE, lambda file: file.write(recipe))
        fsync(root)
        root.rename(out)
        fsync(out.parent)
        shutil.rmtree(work)
