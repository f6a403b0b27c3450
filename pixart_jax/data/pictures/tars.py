"""Pictures in WebDataset tars, read in place: headers once, then any member by its offset."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import SupportsIndex

import numpy as np

from pixart_jax.data.pictures.base import (
    IMAGE_EXTENSIONS,
    MOST_CLASSES,
    BadItem,
    Picture,
    caption_text,
    checked_index,
    clashing,
    printable,
    weighed,
)
from pixart_jax.data.pictures.json_records import checked_weights, record_captions
from pixart_jax.data.pictures.tar_headers import DamagedTar, Member, members
from pixart_jax.errors import InputError

_NO_CAPTION, _TEXT, _JSON, _DAMAGE = range(4)
_CAPTION_KINDS = {"txt": _TEXT, "caption": _TEXT, "json": _JSON}
_NO_LABEL, _BAD_LABEL = -1, -2
# One item: 45 bytes however long its tar. Offset -1 is no such member.
_ENTRY = np.dtype(
    {
        "names": ["tar", "image", "image_size", "caption", "caption_size", "kind", "label"],
        "formats": ["<i4", "<i8", "<i8", "<i8", "<i8", "i1", "<i4"],
    }
)


class TarPictures:
    """The pictures of WebDataset tars, in the order of the tars and of the first member of each key.

    The key is the member's path up to the first dot of its file name, what follows is the extension; members of one
    key need not be neighbours. A picture by its extension; its caption from .txt or .caption, else from .json (the
    fields of a list's record); its label from .cls, a whole number. Where tars have equal keys, the tar's name goes in
    front. Members that are no files, and names that begin with a dot, are left out.

    Opening reads the headers alone, and .cls: half a minute for a million pictures of three members each, once the file
    system has read the headers. Of a tar that is cut short or damaged the members before that place are used, and one
    more item, whose key is the tar's name, is BadItem "truncated-tar". So is a tar without its end mark.

    Args:
      pattern: path, glob, or path with a range in braces, such as shard-{00000..00099}.tar.
      caption_weights: sampling weight by name of a caption field of .json; 1 where not given, 0 leaves the field out.

    Raises:
      InputError: a tar of the pattern is missing, compressed or no tar; none of them has an item; see also
        `checked_weights`.
    """

    def __init__(self, pattern: str, *, caption_weights: Mapping[str, float]):
        self._weights = checked_weights(caption_weights)
        self._pattern = pattern
        self._tars = [os.path.abspath(tar) for tar in expand(pattern)]
        self._damage: dict[int, str] = {}
        self._keys: list[str] = []
        entries, sizes = [], []
        for number, tar in enumerate(self._tars):
            keys, rows = self._index(number, tar)
            self._keys += keys
            entries.append(np.array(rows, _ENTRY))
            sizes.append(os.path.getsize(tar))
        self._entries = np.concatenate(entries)
        if not (self._entries["kind"] != _DAMAGE).any():
            problem = next(iter(self._damage.values()), f"no files in {len(self._tars)} tar(s)")
            raise InputError(f"{pattern}: {problem}; name tars that hold pictures")
        self._put_tar_names_before_clashes()
        self.class_names = tuple(map(str, range(int(self._entries["label"].max()) + 1)))
        digest = hashlib.sha256(json.dumps([self._tar_names(), sizes, self._weights], sort_keys=True).encode())
        digest.update("\0".join(self._keys).encode())
        digest.update(self._entries.tobytes())
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        index = checked_index(index, len(self))
        entry, key = self._entries[index], self._keys[index]
        tar = self._tars[entry["tar"]]
        if entry["kind"] == _DAMAGE:
            raise BadItem(key, "truncated-tar", self._damage[int(entry["tar"])])
        if entry["image"] < 0:
            known = ", ".join(sorted(IMAGE_EXTENSIONS))
            raise BadItem(key, "image-missing", f"no member of {tar} with this key is a picture ({known})")
        if entry["label"] == _BAD_LABEL:
            raise BadItem(key, "bad-record", f"its .cls in {tar} is no whole number from 0 to {MOST_CLASSES - 1}")
        label = None if entry["label"] == _NO_LABEL else int(entry["label"])
        try:
            with open(tar, "rb") as file:
                image = _read(file, entry["image"], entry["image_size"])
                caption = _read(file, entry["caption"], entry["caption_size"])
        except FileNotFoundError:
            raise BadItem(key, "missing-file", f"{tar} is not there any more") from None
        except OSError as error:
            raise BadItem(key, "unreadable", f"{tar}: {error}") from error
        captions = weighed(self._captions(int(entry["kind"]), caption, key), key)
        if not captions and label is None:
            raise BadItem(key, "caption-missing", f"{tar} has neither a caption nor a .cls for it")
        return Picture(key=key, data=image, captions=captions, label=label)

    def fingerprint(self) -> str:
        """Of the tars' names and sizes and the keys, offsets and sizes of the members; known since opening."""
        return self._fingerprint

    def __repr__(self) -> str:
        return f"TarPictures({self._pattern!r})"

    def _index(self, number: int, tar: str) -> tuple[list[str], list[tuple]]:
        groups: dict[str, dict[str, tuple[int, int]]] = {}
        labels: dict[str, int] = {}
        keys, rows = [], []
        try:
            with open(tar, "rb", buffering=0) as file:
                try:
                    for member in members(file.fileno()):
                        _add(member, groups)
                except DamagedTar as error:
                    self._damage[number] = f"{tar}: {error}; copy the tar again to have the rest"
                for key, group in groups.items():
                    if "cls" in group:
                        labels[key] = _label(os.pread(file.fileno(), min(group["cls"][1], 64), group["cls"][0]))
        except InputError as error:
            raise InputError(f"{tar}: {error}") from error
        except OSError as error:
            raise InputError(f"cannot read {tar}: {error}") from error
        for key, group in groups.items():
            image = next((group[extension] for extension in group if extension in IMAGE_EXTENSIONS), (-1, 0))
            captions = ((group[extension], kind) for extension, kind in _CAPTION_KINDS.items() if extension in group)
            caption, kind = next(captions, ((-1, 0), _NO_CAPTION))
            keys.append(key)
            rows.append((number, *image, *caption, kind, labels.get(key, _NO_LABEL)))
        if number in self._damage:
            keys.append(printable(os.path.basename(tar)))
            rows.append((number, -1, 0, -1, 0, _DAMAGE, _NO_LABEL))
        return keys, rows

    def _tar_names(self) -> list[str]:
        """Relative to what they have in common, so that a set that moved stays the same."""
        common = os.path.commonpath([os.path.dirname(tar) for tar in self._tars])
        return [printable(os.path.relpath(tar, common)) for tar in self._tars]

    def _put_tar_names_before_clashes(self) -> None:
        names = [name.removesuffix(".tar") for name in self._tar_names()]
        long = [f"{names[tar]}/{key}" for tar, key in zip(self._entries["tar"], self._keys, strict=True)]
        for index in clashing(self._keys, long):
            self._keys[index] = long[index]

    def _captions(self, kind: int, data: bytes, key: str) -> list[tuple[str, float]]:
        if kind == _NO_CAPTION:
            return []
        if kind == _TEXT:
            return [(caption_text(data, key), 1.0)]
        try:
            record = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadItem(key, "bad-record", f"its .json is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadItem(key, "bad-record", f"its .json is no object but {type(record).__name__}")
        return record_captions(record, self._weights, key)


def expand(pattern: str) -> Iterator[str]:
    """The files of a path, a glob or ranges in braces, in order.

    Raises:
      InputError: nothing matches, or a file of the range is missing; at the first, so that no range is too long.
    """
    if os.path.exists(pattern):
        yield pattern
    elif "{" in pattern:
        for path in _expand_braces(pattern):
            if not os.path.exists(path):
                raise InputError(f"{path}, of {pattern}, is not there; copy it, or make the range smaller")
            yield path
    else:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise InputError(f"{pattern}: no such file; name a .tar, a glob such as *.tar or a range {{00000..00099}}")
        yield from paths


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise InputError(f"{pattern}: the range {match[0]} is empty; write the smaller number first")
    for number in range(first, last + 1):
        head = f"{pattern[: match.start()]}{number:0{len(match[1])}d}"
        yield from (head + tail for tail in _expand_braces(pattern[match.end() :]))


def _add(member: Member, groups: dict[str, dict[str, tuple[int, int]]]) -> None:
    folder, slash, name = printable(member.name).removeprefix("./").rpartition("/")
    stem, _, extension = name.partition(".")
    if stem:
        # The first of several members of one name, as of several pictures: WebDataset refuses such tars.
        groups.setdefault(folder + slash + stem, {}).setdefault(extension.lower(), (member.offset, member.size))


def _label(content: bytes) -> int:
    match = re.fullmatch(rb"\s*([0-9]{1,18})\s*", content)
    return int(match[1]) if match and int(match[1]) < MOST_CLASSES else _BAD_LABEL


def _read(file, offset: int, size: int) -> bytes:
    if offset < 0:
        return b""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError(f"{size} bytes wanted at {offset}, {len(data)} there: the tar has shrunk since it was listed")
    return data
