"""What every source of pictures gives: an encoded picture with captions or a label, or why that item cannot be used."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, SupportsIndex

from pixart_jax.files import open_regular

# More than any picture or caption has: what is larger is something else, or a hole in a sparse file.
MOST_PICTURE_BYTES, MOST_CAPTION_BYTES = 1 << 30, 1 << 24

# What to do about text that is none.
TO_UTF8 = "save it as UTF-8, as by iconv -f latin1 -t utf-8 OLD > NEW where it is Latin-1"

# Wide enough for any mixture, and narrow enough that no share of a sum rounds to zero.
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-6, 1e6

# Labels become rows of an embedding table, so that a number beyond any class list is a mistake, not a class.
MOST_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Picture:
    """One item of a source, as found: nothing is decoded, cleaned or checked beyond what reading it takes.

    Attributes:
      key: unique within the source; always encodes as UTF-8.
      data: the encoded image file.
      captions: (text, sampling weight) pairs; no text is empty or white space, the weights are positive and sum to 1.
        () for a picture that has a class instead.
      label: index into the source's class_names, or None.
      control: the encoded image file of its control picture, see `controls`; or None.
    """

    key: str
    data: bytes
    captions: tuple[tuple[str, float], ...]
    label: int | None
    control: bytes | None = None


class Words(NamedTuple):
    """What is said of a picture; see `Picture`. `captions` is () where there are none, with or without a label."""

    key: str
    captions: tuple[tuple[str, float], ...]
    label: int | None


class BadItem(Exception):
    """An item that cannot be used. Nothing is wrong with the run: count the reason and go on with the next item.

    Attributes:
      key: the item's key, or where it stands ("list.json#3" is the list's third record) when it has none.
      reason: why, in a stable word to count by.
        "missing-file": the file is not there.
        "unreadable": it is, and the system cannot read it, or it has shrunk since it was listed, or it is no regular
          file.
        "too-large": more bytes than any picture or caption has; nothing was read.
        "unsupported": a picture by its name, of a kind that is not read.
        "image-missing": a tar's members of one key hold no picture.
        "caption-missing": neither caption nor label.
        "caption-empty": captions of white space only.
        "caption-not-utf8": a caption's bytes, or its escapes, are no Unicode text.
        "class-missing": a picture beside the class folders instead of in one.
        "bad-record": a JSON record, a label or a weight of the wrong type or range.
        "control-missing": no control picture lies beside this one.
        "truncated-tar": stands for everything behind the place where a tar is cut short or damaged.
        `reference_features` has more.
      message: what exactly.
    """

    def __init__(self, key: str, reason: str, message: str):
        # All three, so that the exception survives pickling on its way out of a worker process.
        super().__init__(key, reason, message)
        self.key = key
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}: {self.message}"


class Pictures(Protocol):
    """Random access to pictures: a Grain data source. Threads may share it; it pickles, for spawned worker processes.

    Attributes:
      class_names: names of the labels, in their order; () when there are none. Where only numbers are known, the
        numbers from 0 to the greatest label.
      others: how many files of the source belong to no item, by what they are, such as ".md" or "hidden".
    """

    class_names: tuple[str, ...]

    @property
    def others(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Picture:
        """Item 0 <= index < len.

        Raises:
          BadItem: this item cannot be used; whatever is wrong with it, nothing else is raised.
          IndexError: there is no such item.
        """

    def words(self, index: SupportsIndex) -> Words:
        """What is said of item 0 <= index < len, which need be nothing; its picture is not read.

        Raises:
          BadItem, IndexError: as of the item itself.
        """

    def data(self, index: SupportsIndex) -> bytes:
        """The encoded image file of item 0 <= index < len; its captions are not read.

        Raises:
          BadItem, IndexError: as of the item itself.
        """

    def file(self, index: SupportsIndex) -> bytes | None:
        """The absolute path of an item's image file; None where it has none of its own, or is not told where."""

    def fingerprint(self) -> str:
        """Hex digest that tells whether a resumed run has the same items in the same order: of names and sizes, not of
        contents. Each class says what it covers and costs."""

    def digest(self, items: range) -> str:
        """The same of some of the items alone, so that a change tells which of them it concerns."""


def checked_index(index: SupportsIndex, length: int) -> int:
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"item {index} of a source of {length}")
    return index


def read_file(path: str | bytes | os.PathLike, key: str, most_bytes: int = MOST_PICTURE_BYTES) -> bytes:
    """The whole file.

    Raises:
      BadItem: "missing-file", "unreadable" or "too-large".
    """
    try:
        with open_regular(path) as file:
            check_size(os.fstat(file.fileno()).st_size, key, most_bytes)
            data = file.read(most_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BadItem(key, "missing-file", f"{printable_path(path)} is not there") from None
    except OSError as error:
        raise BadItem(key, "unreadable", f"{printable_path(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or half a surrogate pair in the name
        raise BadItem(key, "unreadable", f"{printable_path(path)}: {error}") from error
    check_size(len(data), key, most_bytes)  # It may have grown.
    return data


def check_size(num_bytes: int, key: str, most_bytes: int) -> None:
    """Raises BadItem "too-large"."""
    if num_bytes > most_bytes:
        raise BadItem(key, "too-large", f"{num_bytes} bytes, at most {most_bytes} are read")


def caption_text(data: bytes, key: str) -> str:
    """A caption file's text: the whole of it, stripped, less a byte order mark.

    Raises:
      BadItem: "caption-not-utf8".
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadItem(key, "caption-not-utf8", f"{error}; {TO_UTF8}") from error


def half_a_pair() -> str:
    """Why text of JSON is none."""
    return "a JSON escape of half a surrogate pair"


def weighed(
    captions: Iterable[tuple[str, float]], key: str, why_no_text: Callable[[], str] = half_a_pair
) -> tuple[tuple[str, float], ...]:
    """The captions that are more than white space, their weights scaled to sum to 1; () of none.

    Args:
      why_no_text: of what is wrong where a caption is no text.

    Raises:
      BadItem: "caption-empty" when there are captions and none is left, "caption-not-utf8" when one is no text.
    """
    captions = tuple(captions)
    left = [(text, weight) for text, weight in captions if text.strip()]
    if captions and not left:
        raise BadItem(key, "caption-empty", "its caption is empty or white space; write one, or remove the picture")
    for text, _ in left:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadItem(key, "caption-not-utf8", why_no_text()) from error
    total = sum(weight for _, weight in left)
    return tuple((text, weight / total) for text, weight in left)


def printable(text: str) -> str:
    """Text that encodes: what stands for bytes that are no UTF-8 becomes escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable_path(path: str | bytes | os.PathLike) -> str:
    """`printable` of what the file system, or the command line, calls a file."""
    return printable(path_text(path))


def path_text(path: str | bytes | os.PathLike) -> str:
    """A path's bytes read as UTF-8, whatever the locale; bytes that are none become surrogates (PEP 383)."""
    path = os.fspath(path)
    with contextlib.suppress(UnicodeEncodeError):  # Of half a surrogate pair, which no file system gave.
        path = os.fsencode(path)
    return path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")


def path_bytes(text: str) -> bytes:
    """The inverse of `path_text`.

    Raises:
      UnicodeEncodeError: half a surrogate pair.
    """
    return text.encode("utf-8", "surrogateescape")


def shown(value: object) -> str:
    """A value found in a file, for a message: as short as may be, however deep it is nested."""
    return reprlib.repr(value)[:60]


def clashing(short: Sequence[str], long: Sequence[str]) -> frozenset[int]:
    """Indices of the items that must go by their long name so that no two names are equal; long names are unique."""
    names = list(short)
    clashes: set[int] = set()
    while True:
        counts = collections.Counter(names)
        found = {index for index, name in enumerate(names) if counts[name] > 1} - clashes
        if not found:
            return frozenset(clashes)
        # A long name may be another's short one: a.jpg, a.png and a.jpg.png. So look again.
        clashes |= found
        for index in found:
            names[index] = long[index]
