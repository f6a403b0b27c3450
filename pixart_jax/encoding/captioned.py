"""Pictures and what a model says of them, as a source that extraction reads: the work of `tools.caption`."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from PIL import Image

from pixart_jax.data.decoding import MAX_RATIO, BadImage, decode
from pixart_jax.data.pictures import BadItem, Pictures, Words
from pixart_jax.data.pictures.base import LEAST_WEIGHT, path_text
from pixart_jax.data.pictures.controls import MARK, NamesControls
from pixart_jax.encoding.captioner import Answer
from pixart_jax.encoding.pictures import bounded_map
from pixart_jax.encoding.tar_shards import TarItem, write_tar
from pixart_jax.errors import InputError
from pixart_jax.files import write_atomically
from pixart_jax.files.unit_work import Skipped, Written

LIST_FILE, ODD_FILE = "captions.jsonl", "odd_answers.jsonl"
# PixArt-α §2.4; with the caption that a picture has, as for LAION, and without, as for SAM. The words around the
# caption are those of the authors' code, which asks for no style.
WITHOUT_CAPTION = "Describe this image and its style in a very detailed manner"
WITH_CAPTION = (
    'Given the caption of this image "{caption}", describe this image and its style in a very detailed manner'
)
# Characters of an old caption that the model is shown: more would crowd the picture out of what a model can hold.
MOST_SHOWN = 1000

_REFUSAL = re.compile(
    r"(i'm|i am|we're|we are) (really |very |so |afraid )*(sorry|unable|not able|afraid)\b|sorry[,.!]|sorry,? but\b"
    r"|(i|we) (can't|cannot|can not|won't|am unable|am not able|do not have|don't have|apologi[sz]e)\b"
    r"|(my |our )?apologies\b|as an ai\b|unfortunately,? (i|we)\b|unable to\b|抱歉|对不起|很抱歉|我无法|我不能|無法"
)


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as those do that speak of the model in place of the picture."""
    return _REFUSAL.match(answer.casefold().replace("’", "'").lstrip(" \"'*_")) is not None


class Asked(Protocol):
    """What answers; see `captioner.Captioner`."""

    def answers(self, pictures: Sequence[Image.Image], requests: Sequence[str]) -> list[Answer]: ...


class Prepared(NamedTuple):
    """A picture that is to be captioned; `data` and `control` are its file and its control picture's where the source
    has none of its own."""

    place: int
    words: Words
    image: Image.Image
    data: bytes | None
    control: bytes | None


class CaptionedPictures:
    """Units of pictures with new captions; see `unit_work.Units`.

    What they become is a list where the pictures are files, and else tars with a copy of each. A picture has its
    new caption first, and its old ones behind it. An answer that is empty or a refusal is no caption: such a picture
    keeps its old ones, or is left out.

    Args:
      pictures: the source.
      captioner: what is asked.
      out: where the list will be.
      request: what is asked about each picture, with the caption that weighs most in place of {caption}; without any
        {caption} the model does not see it. None for the paper's, WITH_CAPTION where there is a caption and else
        WITHOUT_CAPTION.
      old_caption_weight: the share of the old captions; 0 leaves them out.
      about: JSON-able, for the recipe: what the source and the captioner are.
      items_per_unit, batch_size: of the source; pictures that are asked about at a time.
      picture_side: what has a longer side is shrunk to it before the model sees it.
      min_side, max_pixels: as of extraction, which would skip what is skipped here.
      num_threads: that read and decode.
    """

    def __init__(
        self,
        pictures: Pictures,
        captioner: Asked,
        out: pathlib.Path,
        *,
        request: str | None,
        old_caption_weight: float,
        about: Mapping[str, Any],
        items_per_unit: int = 256,
        batch_size: int = 8,
        picture_side: int = 1024,
        min_side: int = 64,
        max_pixels: int = 2**27,
        num_threads: int = 8,
    ):
        self._pictures, self._captioner, self._out = pictures, captioner, out
        self._named = pictures if isinstance(pictures, NamesControls) and pictures.num_controls else None
        self._request, self._old_weight = request, old_caption_weight
        self._batch_size, self._picture_side, self._num_threads = batch_size, picture_side, num_threads
        self._limits = {"min_side": min_side, "max_pixels": max_pixels}
        self.num_items, self.items_per_unit = len(pictures), items_per_unit
        self.recipe = {
            **about,
            "fingerprint": pictures.fingerprint(),
            "request": request or [WITH_CAPTION, WITHOUT_CAPTION],
            "old_caption_weight": old_caption_weight,
            "items_per_unit": items_per_unit,
            "picture_side": picture_side,
            **self._limits,
        }

    def digest(self, items: range) -> str:
        return self._pictures.digest(items)

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        with ThreadPoolExecutor(self._num_threads) as pool:
            results = bounded_map(pool, self._prepare, items, ahead=2 * self._num_threads)
            return [result for result in results if isinstance(result, Skipped)]

    def make(self, number: int, items: range, work: pathlib.Path) -> tuple[Mapping[str, Any], list[Skipped]]:
        records: list[dict] = []
        copies: list[tuple[bytes, bytes | None]] = []
        odd: list[dict] = []
        skipped: list[Skipped] = []
        for batch in self._batches(items, skipped):
            requests = [self._asked(item.words.captions) or "" for item in batch]
            for item, answer in zip(
                batch, self._captioner.answers([each.image for each in batch], requests), strict=True
            ):
                what = "empty" if not answer.text else "refused" if is_refusal(answer.text) else None
                captions = self._captions(None if what else answer.text, item.words.captions)
                if what or answer.is_cut:
                    said = {"key": item.words.key, "what": what or "cut", "answer": answer.text}
                    odd.append(said | {"kept": bool(captions)})
                if captions:
                    records.append(self._record(item, captions))
                    copies += [] if item.data is None else [(item.data, item.control)]
        tar = work / "tars" / _tar_name(number)
        tar.unlink(missing_ok=True)  # Of a unit that is made again.
        if copies:
            write_tar(
                tar,
                (
                    TarItem(f"{record['place']:09d}", picture, record, control)
                    for record, (picture, control) in zip(records, copies, strict=True)
                ),
            )
        return {"records": len(records), "list": [] if copies else records, "odd": odd}, skipped

    def assemble(self, made: Written, work: pathlib.Path) -> pathlib.Path:
        if not any(unit["records"] for unit in made):
            odd = collections.Counter(said["what"] for unit in made for said in unit["odd"])
            raise InputError(
                f"{self._out}: not one of {self.num_items} pictures has a caption: skipped {made.reasons()}, answers "
                f"{dict(sorted(odd.items()))}; look at {work}/units, which has all of them, and mend that or remove it"
            )
        ready = work / "ready"
        ready.mkdir(exist_ok=True)
        is_list = any(unit["list"] for unit in made)
        for number, unit in enumerate(made):
            source, target = (folder / _tar_name(number) for folder in (work / "tars", ready))
            if source.exists():
                source.replace(target)
            elif is_list or not unit["records"]:  # Of units that were made again with less.
                target.unlink(missing_ok=True)
        if is_list:
            _write_rows(ready / LIST_FILE, (record for unit in made for record in unit["list"]))
        _write_rows(ready / ODD_FILE, (said for unit in made for said in unit["odd"]))
        return ready

    def _batches(self, items: range, skipped: list[Skipped]) -> Iterator[list[Prepared]]:
        """Those that can be used, in their order; adds the others to `skipped`."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            results = bounded_map(pool, self._prepare, items, ahead=2 * self._num_threads + self._batch_size)
            usable = self._usable(results, skipped)
            while batch := list(itertools.islice(usable, self._batch_size)):
                yield batch

    @staticmethod
    def _usable(results: Iterator[Prepared | Skipped], skipped: list[Skipped]) -> Iterator[Prepared]:
        for result in results:
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                yield result

    def _prepare(self, index: int) -> Prepared | Skipped:
        """Reads and decodes one item; never raises for what is wrong with it."""
        try:
            words = self._words(index)
            data = self._pictures.data(index)
            file = self._pictures.file(index)
            image = decode(data, **self._limits, max_ratio=MAX_RATIO)
        except BadItem as error:
            return Skipped(error.key, error.reason, error.message, index)
        except BadImage as error:
            return Skipped(words.key, error.reason, error.message, index)
        if self._asked(words.captions) is None:
            return Skipped(words.key, "caption-missing", "the request holds {caption}, and it has none", index)
        scale = self._picture_side / max(image.size)
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
        return Prepared(index, words, image, *((data, self._control(index)) if file is None else (None, None)))

    def _control(self, index: int) -> bytes | None:
        """The encoded control picture that the source names; None where it names none, or it cannot be read."""
        with contextlib.suppress(BadItem):
            return self._named.control(index) if self._named else None
        return None

    def _words(self, index: int) -> Words:
        try:
            return self._pictures.words(index)
        except BadItem as error:
            if error.reason != "caption-empty":
                raise
            return Words(error.key, (), None)  # It gets one.

    def _asked(self, captions: Sequence[tuple[str, float]]) -> str | None:
        """The request about a picture; None where it needs a caption that is not there."""
        request = self._request or (WITH_CAPTION if captions else WITHOUT_CAPTION)
        if "{caption}" not in request:
            return request
        if not captions:
            return None
        heaviest = max(captions, key=lambda caption: caption[1])[0]
        return request.replace("{caption}", " ".join(heaviest.split())[:MOST_SHOWN])

    def _captions(self, new: str | None, old: Sequence[tuple[str, float]]) -> list[dict]:
        """Entries of a record's `captions`."""
        share = self._old_weight if new is not None else 1.0
        entries = [{"text": text, "weight": max(weight * share, LEAST_WEIGHT)} for text, weight in old]
        entries = entries if self._old_weight else []
        return entries if new is None else [{"text": new, "weight": 1 - self._old_weight}, *entries]

    def _record(self, item: Prepared, captions: list[dict]) -> dict:
        """Of a list, or of a .json beside the picture."""
        record: dict[str, Any] = {"captions": captions}
        if item.words.label is not None:
            record["label"] = item.words.label
        file = self._pictures.file(item.place)
        if file is None:
            return record | {"key": item.words.key, "place": item.place}
        out = os.fsencode(self._out)
        with contextlib.suppress(BadItem):
            if self._named and (control := self._named.control_file(item.place)) is not None:
                record[MARK] = _relative(control, out)
        return {"path": _relative(file, out)} | record


def _relative(file: bytes, folder: bytes) -> str:
    """A path from a folder that is yet to be made; links above either are followed, so that `..` means the same."""
    above, name = os.path.split(file)
    return path_text(os.path.join(os.path.relpath(_real(above), _real(folder)), name))


@functools.lru_cache(maxsize=4096)
def _real(folder: bytes) -> bytes:
    return os.path.realpath(folder)


def _tar_name(number: int) -> str:
    return f"{number:06d}.tar"


def _write_rows(path: pathlib.Path, rows: Iterator[Mapping]) -> None:
    write_atomically(path, lambda file: file.writelines(map(_row, rows)))


def _row(values: Mapping) -> bytes:
    try:
        return (json.dumps(values, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # Of a path that is no UTF-8.
        return (json.dumps(values) + "\n").encode()
