"""Everything that can be said of a source of pictures by reading it once, before anything of it is encoded."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from pixart_jax.data.decoding import MAX_RATIO, BadImage, decode
from pixart_jax.data.pictures import BadItem, Pictures

_THREADS = 8
# Of items that may get a caption yet (tools.caption): their pictures are looked at all the same.
_OF_WORDS = ("caption-missing", "caption-empty", "caption-not-utf8")
# Items read between two reports, and a bound on the pictures that wait decoded.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Seen:
    """One item that was looked at.

    Attributes:
      index, key: of it.
      reason, message: why it cannot be used, see `BadItem` and `BadImage`; "" where it can.
      size: (height, width) in pixels, upright; None where there is no picture to be seen.
      captions: words and hash of each.
    """

    index: int
    key: str
    reason: str = ""
    message: str = ""
    size: tuple[int, int] | None = None
    captions: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class PictureSurvey:
    """What some items of a source hold together.

    Attributes:
      seen: the items, in their order.
      good, bad: those of them that can be used, and those that would be skipped.
      visible: those whose picture can be seen, which may lack a caption.
      reasons: how many for which reason.
      sizes: i64[n, 2], (height, width) of the visible.
      words: i64[m], of each caption of the good.
      captions_per_picture: how many of them have 0, 1, ... captions.
      repeated: share of their captions that are not unique.
    """

    seen: Sequence[Seen]

    @functools.cached_property
    def good(self) -> list[Seen]:
        return [item for item in self.seen if not item.reason]

    @functools.cached_property
    def bad(self) -> list[Seen]:
        return [item for item in self.seen if item.reason]

    @functools.cached_property
    def visible(self) -> list[Seen]:
        return [item for item in self.seen if item.size]

    @property
    def reasons(self) -> collections.Counter[str]:
        return collections.Counter(item.reason for item in self.bad)

    @property
    def sizes(self) -> np.ndarray:
        return np.array([item.size for item in self.visible]).reshape(-1, 2)

    @property
    def words(self) -> np.ndarray:
        return np.array([words for item in self.good for words, _ in item.captions], int)

    @property
    def captions_per_picture(self) -> collections.Counter[int]:
        return collections.Counter(len(item.captions) for item in self.good)

    @property
    def repeated(self) -> float:
        counts = collections.Counter(found for item in self.good for _, found in item.captions)
        return sum(count for count in counts.values() if count > 1) / max(counts.total(), 1)


def survey_pictures(
    pictures: Pictures,
    items: Sequence[int],
    *,
    min_side: int,
    max_pixels: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PictureSurvey:
    """Reads and decodes items of a source as extraction does; none that is bad stops it.

    Args:
      items: their indices.
      min_side, max_pixels: see `decode`.
      progress: told how many are done, of how many.
    """
    seen: list[Seen] = []
    look = functools.partial(_look, pictures, min_side=min_side, max_pixels=max_pixels)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(items), _CHUNK):
            seen += pool.map(look, items[first : first + _CHUNK])
            progress(len(seen), len(items))
    return PictureSurvey(seen)


def _look(pictures: Pictures, index: int, *, min_side: int, max_pixels: int) -> Seen:
    try:
        picture = pictures[index]
    except BadItem as error:
        seen = Seen(index, error.key, error.reason, error.message)
        if error.reason in _OF_WORDS:
            with contextlib.suppress(BadItem, BadImage):
                image = decode(pictures.data(index), min_side=min_side, max_pixels=max_pixels, max_ratio=MAX_RATIO)
                return dataclasses.replace(seen, size=(image.height, image.width))
        return seen
    if pictures.class_names and picture.label is None:
        return Seen(index, picture.key, "label-missing", "no class label, and the others have one")
    try:
        image = decode(picture.data, min_side=min_side, max_pixels=max_pixels, max_ratio=MAX_RATIO)
    except BadImage as error:
        return Seen(index, picture.key, error.reason, error.message)
    captions = tuple((len(text.split()), _hash(text)) for text, _ in picture.captions)
    return Seen(index, picture.key, size=(image.height, image.width), captions=captions)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
