"""The nouns of a source's captions, counted in units: the work of `tools.concepts`."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, SupportsIndex

from pixart_jax.data.concepts import PAPER, VALID_ABOVE, WHOLE, Concepts, table
from pixart_jax.data.nouns import Tagger
from pixart_jax.data.pictures import BadItem, Words
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import MANIFEST_FILE
from pixart_jax.errors import InputError
from pixart_jax.figures.concepts import concepts_png
from pixart_jax.files import write_atomically
from pixart_jax.files.unit_work import Skipped, Written

# Captions that are read before they are tagged; a source may have very long ones.
_READ_AHEAD = 512


class Captions(Protocol):
    """What nouns are counted of: any `Pictures`, or `ShardCaptions`."""

    def __len__(self) -> int: ...

    def words(self, index: SupportsIndex) -> Words: ...

    def fingerprint(self) -> str: ...

    def digest(self, items: range) -> str: ...


class ShardCaptions:
    """The captions of feature shards, as the text encoder read them: cleaned.

    Raises:
      InputError: see `ShardReader`; or the set has no captions.
    """

    def __init__(self, directory: str | os.PathLike):
        self._reader = ShardReader(directory)
        if self._reader.manifest.text_encoder == "none":
            raise InputError(f"{directory}: the set has class labels and no captions; name another")
        # Of a set that is published nothing changes, and its manifest has the checksums of its shards.
        self._digest = hashlib.sha256(pathlib.Path(directory, MANIFEST_FILE).read_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._reader)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`; raises InputError for a damaged record."""
        sample = self._reader[operator.index(index)]
        return Words(sample.key, tuple((text.caption, text.weight) for text in sample.texts), sample.label)

    def fingerprint(self) -> str:
        return self._digest

    def digest(self, items: range) -> str:
        return self._digest


class NounCounts:
    """Units whose nouns are counted, and the result of all; see `unit_work.Units`.

    Args:
      captions: the source.
      tagger: finds the nouns.
      about: JSON-able, for the recipe: what the source is called, as "source", and how it was opened.
      only: which caption of each picture is counted, from 1, as if it were the only one; None for all, by weight.
        Pictures with fewer are skipped as "caption-missing".
      lower_case: "Dog" and "dog" are one noun.
      items_per_unit: of the source.
      num_threads: that read.
    """

    def __init__(
        self,
        captions: Captions,
        tagger: Tagger,
        *,
        about: Mapping[str, Any],
        only: int | None = None,
        lower_case: bool = False,
        items_per_unit: int = 10_000,
        num_threads: int = 8,
    ):
        self._captions, self._tagger, self._only, self._lower_case = captions, tagger, only, lower_case
        self._source, self._num_threads = str(about["source"]), num_threads
        self.num_items, self.items_per_unit = len(captions), items_per_unit
        self.recipe = {
            **about,
            "fingerprint": captions.fingerprint(),
            "tagger": tagger.name,
            "lower_case": lower_case,
            "caption": only or "all, by weight",
            "items_per_unit": items_per_unit,
        }

    def digest(self, items: range) -> str:
        return self._captions.digest(items)

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        return [found for index in items if isinstance(found := self._read(index), Skipped)]

    def make(self, number: int, items: range, work: pathlib.Path) -> tuple[Mapping[str, Any], list[Skipped]]:
        counts, skipped = Concepts(), []
        with ThreadPoolExecutor(self._num_threads) as pool:
            for start in range(items.start, items.stop, _READ_AHEAD):
                pictures = []
                for found in pool.map(self._read, range(start, min(start + _READ_AHEAD, items.stop))):
                    if isinstance(found, Skipped):
                        skipped.append(found)
                    else:
                        pictures.append(found)
                nouns = iter(self._tagger.nouns([text for captions in pictures for text, _ in captions]))
                for captions in pictures:
                    counts.add([(self._folded(next(nouns)), weight) for _, weight in captions])
        return counts.as_json(), skipped

    def assemble(self, made: Written, work: pathlib.Path) -> pathlib.Path:
        counts = Concepts()
        for unit in made:
            counts.merge(unit)
        skipped = made.reasons()
        if not counts.pictures:
            first = next(made.skipped())
            raise InputError(
                f"{self._source}: not one of {self.num_items} items has a caption; {skipped} were skipped, such as "
                f"{first.key}: {first.message}"
            )
        row = counts.row(self._source)
        result = {
            **self.recipe,
            "pictures": counts.pictures,
            "captions": counts.captions,
            "skipped": skipped,
            "valid_above": VALID_ABOVE,
            "valid_nouns": row.valid,
            "distinct_nouns": row.distinct,
            "ratio": row.ratio,
            "total_nouns": row.total,
            "nouns_per_picture": row.per_picture,
            "pictures_by_nouns": dict(sorted(counts.per_picture.items())),
        }
        ready = work / "ready"
        ready.mkdir(exist_ok=True)
        _write(ready / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        _write(ready / "result.md", f"{table([*PAPER, row])}\n")
        ranked = sorted(counts.nouns.items(), key=lambda item: (-item[1], item[0]))
        for name, is_rare in (("valid.tsv", False), ("rare.tsv", True)):
            kept = (item for item in ranked if (item[1] <= VALID_ABOVE * WHOLE) == is_rare)
            _write(ready / name, "".join(f"{count / WHOLE:.6g}\t{noun}\n" for noun, count in kept))
        concepts_png(
            ready / "concepts.png",
            f"{self._source}: {counts.pictures:,} pictures, {self._tagger.name}",
            per_picture=counts.per_picture,
            appearances=[count / WHOLE for _, count in ranked],
            valid_above=VALID_ABOVE,
        )
        return ready

    def _folded(self, nouns: Sequence[str]) -> Sequence[str]:
        return [noun.lower() for noun in nouns] if self._lower_case else nouns

    def _read(self, index: int) -> tuple[tuple[str, float], ...] | Skipped:
        try:
            key, captions, _ = self._captions.words(index)
        except BadItem as error:
            return Skipped(error.key, error.reason, error.message, index)
        if self._only is not None:
            captions = captions[self._only - 1 : self._only]
        if not captions:
            which = "no caption" if self._only is None else f"no caption number {self._only}"
            return Skipped(key, "caption-missing", which, index)
        return captions


def _write(path: pathlib.Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
