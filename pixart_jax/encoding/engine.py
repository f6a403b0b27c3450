"""Pictures and captions to feature shards: in units that are whole or absent, so that a killed run goes on; see
`files.unit_work`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pixart_jax.data.shards.manifest import Manifest, Shard
from pixart_jax.data.shards.records import Sample
from pixart_jax.data.shards.shard_files import assemble, write_shard
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Skipped, Tally, Written, work_through

# Name of a set that is alone.
ONLY = "set"


class Units(Protocol):
    """What makes the samples of a unit.

    Attributes:
      num_items: of the source.
      items_per_unit: S.
      manifests: of each set to be written, without shards, by the name of its folder below the output; the only one,
        ONLY, is the output itself.
      recipe: JSON-able; all that the samples depend on; see `unit_work.Units`.
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


def extract(
    units: Units,
    out: str | os.PathLike,
    *,
    process_index: int = 0,
    process_count: int = 1,
    report: Callable[[Tally], None] = lambda tally: None,
    put_beside: Callable[[pathlib.Path], None] = lambda folder: None,
) -> bool:
    """Encodes this process's share of the units that are not done yet, and publishes the sets when none is left.

    Args:
      out: must not exist. Of one set its folder, of several the folder above them.
      process_index, process_count, report: see `work_through`.
      put_beside: puts into the folder of a set what is to lie beside its shards; the set appears with it.

    Returns:
      Whether the sets are published; False when other processes have not finished.

    Raises:
      InputError: see `work_through`; or no item could be used.
    """
    out = pathlib.Path(out).absolute()
    return work_through(
        _Shards(units, out, put_beside), out, process_index=process_index, process_count=process_count, report=report
    )


@dataclasses.dataclass(frozen=True)
class _Shards:
    """A shard of each set per unit, and sets of the shards."""

    units: Units
    out: pathlib.Path
    put_beside: Callable[[pathlib.Path], None]

    @property
    def num_items(self) -> int:
        return self.units.num_items

    @property
    def items_per_unit(self) -> int:
        return self.units.items_per_unit

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.units.recipe

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        return self.units.still_skipped(items)

    def digest(self, items: range) -> str:
        return self.units.digest(items)

    def make(self, number: int, items: range, work: pathlib.Path) -> tuple[Mapping[str, Any], list[Skipped]]:
        sets, skipped = self.units.samples(items)
        parts = {}
        for name, samples in sets.items():
            if samples:
                path = work / "sets" / name / f"shard-{number:05d}.array_record"
                path.parent.mkdir(parents=True, exist_ok=True)
                shard, histogram = write_shard(path, samples, self.units.manifests[name])
                parts[name] = {"shard": dataclasses.asdict(shard), "histogram": histogram}
        return {"parts": parts}, skipped

    def assemble(self, made: Written, work: pathlib.Path) -> pathlib.Path:
        counts = made.reasons()
        written = [unit["parts"] for unit in made]
        ready = work / "ready"
        ready.mkdir(exist_ok=True)
        for name, manifest in self.units.manifests.items():
            if (ready / name).exists():  # A kill came between this and the end.
                continue
            if not any(name in parts for parts in written):
                first = next(made.skipped())
                raise InputError(
                    f"{self.out}: not one of {self.num_items} items could be used; {counts} were skipped, such as "
                    f"{first.key}: {first.message}. Mend that and give the same command again; {work} has "
                    "what was found out so far"
                )
            shards = [(Shard(**parts[name]["shard"]), parts[name]["histogram"]) for parts in written if name in parts]
            keep = {shard.file for shard, _ in shards}
            for path in (work / "sets" / name).iterdir():  # Of units that were made again with less, or killed.
                if path.name.removesuffix(".buckets.npy") not in keep:
                    path.unlink()
            self.put_beside(work / "sets" / name)
            whole = dataclasses.replace(manifest, skipped=counts)
            assemble(work / "sets" / name, ready / name, whole, shards)
        lone = ready / ONLY
        return lone if lone.exists() else ready
