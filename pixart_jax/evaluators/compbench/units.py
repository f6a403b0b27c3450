"""Pictures looked at in units that are whole or absent, so that scoring goes on after a kill and processes share it.

Unit k is pictures k·S to (k+1)·S − 1 of a category; process i of P takes every P-th. It depends on its pictures and the
judge alone, and is made again where its pictures have changed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from pixart_jax.data.decoding import BadImage, decode
from pixart_jax.data.pictures.base import BadItem, read_file
from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.layout import Pictures
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import Fields, read_fields

# What JSON can hold is said of each of N pictures, given with their numbers in the category.
Judge = Callable[[Pictures, Sequence[int], Sequence[Image.Image]], Sequence[Any]]
# Pictures in memory together.
_AT_ONCE = 64
_CURE = "remove it, and the same command makes it again"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was said of a category's pictures.

    Attributes:
      values: by the picture's number; those that could not be read are not there.
      skipped: reason by the number of those.
    """

    values: Mapping[int, Any]
    skipped: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Units:
    """One judge's work on one category.

    Attributes:
      folder: of its files, for this judge and this category alone.
      size: S.
    """

    pictures: Pictures
    folder: pathlib.Path
    size: int

    def __len__(self) -> int:
        return -(-len(self.pictures) // self.size)

    def begin(self, recipe: Mapping[str, str]) -> None:
        """Says in the folder whose work it is.

        Raises:
          InputError: it is another judge's, or has units of another size.
        """
        recipe = {**recipe, "pictures per unit": str(self.size), "pictures": str(len(self.pictures))}
        path = self.folder / "recipe.json"
        if path.exists():
            begun = read_fields(path, f"remove {self.folder}")
            if changed := sorted(key for key in {*begun, *recipe} if begun.get(key) != recipe.get(key)):
                raise InputError(
                    f"{self.folder} was begun with other {', '.join(changed)}; remove it, or name another --out"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, recipe)

    def judge(self, judge: Judge, index: int, count: int, num_threads: int, report: Callable[[int], None]) -> None:
        """Writes what is not there yet of the share of process `index` of `count`.

        Args:
          report: called after each unit with the number of pictures of the share that are done.
        """
        done = 0
        for number in range(index, len(self), count):
            rows = self._rows(number)
            done += len(rows)
            if self._read(number) is None:
                self._judge_unit(number, judge, num_threads)
                report(done)

    def read(self) -> Judged | None:
        """All units, or None where other processes are still at them; raises InputError if one is damaged."""
        values: dict[int, Any] = {}
        skipped: dict[int, str] = {}
        for number in range(len(self)):
            fields = self._read(number)
            if fields is None:
                return None
            found, left_out = fields.fields("values"), fields.fields("skipped")
            for row in self._rows(number):
                if str(row) in left_out:
                    skipped[row] = left_out.text(str(row))
                elif str(row) in found:
                    values[row] = found[str(row)]
                else:
                    raise InputError(f"{fields.path} is damaged: picture {row} is not in it; {_CURE}")
        return Judged(values, skipped)

    def _read(self, number: int) -> Fields | None:
        """None where a unit is not there, or of pictures that have changed."""
        path = self._path(number)
        if not path.exists():
            return None
        fields = read_fields(path, _CURE, 1 << 30)
        return fields if fields.text("pictures") == self.pictures.fingerprint(self._rows(number)) else None

    def _judge_unit(self, number: int, judge: Judge, num_threads: int) -> None:
        rows = self._rows(number)
        fingerprint = self.pictures.fingerprint(rows)
        values: dict[int, Any] = {}
        skipped: dict[int, str] = {}
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            for start in range(0, len(rows), _AT_ONCE):
                part = rows[start : start + _AT_ONCE]
                images: dict[int, Image.Image] = {}
                for row, found in zip(part, pool.map(self._open, part), strict=True):
                    if isinstance(found, str):
                        skipped[row] = found
                    else:
                        images[row] = found
                said = judge(self.pictures, list(images), list(images.values())) if images else []
                values |= zip(images, said, strict=True)
        _write(self._path(number), {"pictures": fingerprint, "values": values, "skipped": skipped})

    def _open(self, row: int) -> Image.Image | str:
        path = self.pictures.path(row)
        try:
            return decode(read_file(path, path.name), max_pixels=2**27, min_side=1)
        except (BadImage, BadItem) as error:
            return f"{error.reason}: {error.message}"

    def _rows(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, len(self.pictures)))

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06d}.json"


def _write(path: pathlib.Path, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(text.encode()))
