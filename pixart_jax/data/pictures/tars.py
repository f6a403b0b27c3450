"""Pictures in WebDataset tars, read in place: headers once, then any member by its offset."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, SupportsIndex

import numpy as np

from pixart_jax.data.picture_formats import HEAD, NO_PICTURES, begins_like_a_picture, extension, is_image, why_not_read
from pixart_jax.data.pictures.base import (
    MOST_CAPTION_BYTES,
    MOST_CLASSES,
    MOST_PICTURE_BYTES,
    BadItem,
    Picture,
    Words,
    caption_text,
    check_size,
    checked_index,
    clashing,
    path_text,
    printable,
    weighed,
)
from pixart_jax.data.pictures.controls import EXTENSIONS, MARK
from pixart_jax.data.pictures.fields import Fields
from pixart_jax.data.pictures.patterns import expand
from pixart_jax.data.pictures.tar_headers import DamagedTar, Member, members
from pixart_jax.errors import InputError
from pixart_jax.files import open_regular

_PICTURE, _NOT_READ, _DAMAGE = range(3)
_CAPTIONS = ("txt", "caption", "json")
_NO_LABEL, _BAD_LABEL = -1, -2
_Place = tuple[int, int]
_NOWHERE: _Place = (-1, 0)
# One item: 73 bytes however long its tar. Offset -1 is no such member.
_ENTRY = np.dtype(
    [("tar", "<i4"), ("image", "<i8"), ("image_size", "<i8")]
    + [(f"{name}{size}", "<i8") for name in _CAPTIONS for size in ("", "_size")]
    + [("kind", "i1"), ("label", "<i4")]
)


class TarPictures:
    """The pictures of WebDataset tars, in the order of the tars and of the first member of each key.

    The key is WebDataset's: the member's path up to the first dot of its file name; what follows is the extension.
    Members of one key need not be neighbours. A picture by its extension, or by its first bytes where a key has none;
    its caption from .txt, .caption or .json (the fields of a list's record), the first of them that holds any; its
    label from .cls, a whole number. Where tars have equal keys, the tar's name goes in front. Members that are no
    files, and names that begin with a dot, are left out.

    WebDataset has one sample of a key, and so of img.v1.jpg and img.v2.jpg. Here a picture whose name has more dots is
    an item of its own, keyed img.v1, if its key has no picture without more dots, or if it has a caption or label of
    its own (img.v1.txt). Else it is another view (0.seg.png beside 0.jpg), which nobody reads. What such an item has
    not itself it takes from its key: img.txt.

    The control picture of img.jpg is img.control.png (or .jpg, .jpeg, .webp), that of img.v1.jpg img.v1.control.png;
    see `controls`. They are no items.

    Opening reads the headers alone, and .cls: half a minute for a million pictures of three members each, once the file
    system has read the headers. Of a tar that is cut short or damaged the members before that place are used, and one
    more item, whose key is the tar's name, is BadItem "truncated-tar". So is a tar without its end mark.

    Args:
      pattern: path, glob, or path with a range in braces, such as shard-{00000..00099}.tar.
      fields: what is read of a .json; where captions' were named, .txt and .caption are not read.
      tars: the pattern's files, where they are known already.

    Raises:
      InputError: a tar of the pattern is missing, compressed or no tar; none of them has an item.
    """

    def __init__(self, pattern: str, *, fields: Fields | None = None, tars: Sequence[str] = ()):
        self._fields = fields or Fields()
        self._pattern = pattern
        self._tars = [os.path.abspath(tar) for tar in tars or expand(pattern, ".tar")]
        self._damage: dict[int, str] = {}
        self._keys: list[str] = []
        self.others: collections.Counter[str] = collections.Counter()
        entries, sizes = [], []
        # Beside the entries, whose bytes are what a set that was begun knows this source by.
        controls: list[_Place] = []
        for number, tar in enumerate(self._tars):
            keys, rows, own = self._index(number, tar)
            self._keys += keys
            controls += own
            entries.append(np.array(rows, _ENTRY))
            sizes.append(os.path.getsize(tar))
        self._entries = np.concatenate(entries)
        self._controls = np.array(controls, np.int64).reshape(-1, 2)
        self.num_controls = int((self._controls[:, 0] >= 0).sum())
        if not (self._entries["kind"] != _DAMAGE).any():
            problem = next(iter(self._damage.values()), f"no files in {len(self._tars)} tar(s)")
            raise InputError(f"{pattern}: {problem}; name tars that hold pictures")
        self._put_tar_names_before_clashes()
        self.class_names = tuple(map(str, range(int(self._entries["label"].max()) + 1)))
        described = [self._tar_names(), sizes, self._fields.weights, *self._fields.digest]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update("\0".join(self._keys).encode())
        digest.update(self._entries.tobytes())
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        entry, tar, key, label = self._usable(index)
        with self._open(tar, key) as file:
            image = _read(file, entry["image"], entry["image_size"])
            captions = self._captions(file, entry, key)
        if not captions and label is None:
            raise BadItem(key, "caption-missing", f"{tar} has neither a caption nor a .cls for it")
        return Picture(key=key, data=image, captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`."""
        entry, tar, key, label = self._usable(index)
        with self._open(tar, key) as file:
            return Words(key, self._captions(file, entry, key), label)

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`."""
        entry, tar, key, _ = self._usable(index)
        with self._open(tar, key) as file:
            return _read(file, entry["image"], entry["image_size"])

    def file(self, index: SupportsIndex) -> None:
        """See `Pictures.file`."""
        return None

    def control(self, index: SupportsIndex) -> bytes | None:
        """See `controls.NamesControls`."""
        _, tar, key, _ = self._usable(index)
        offset, size = map(int, self._controls[checked_index(index, len(self))])
        if offset < 0:
            return None
        check_size(size, key, MOST_PICTURE_BYTES)
        with self._open(tar, key) as file:
            return _read(file, offset, size)

    def control_file(self, index: SupportsIndex) -> None:
        """See `controls.NamesControls`."""
        return None

    def controls_digest(self, items: range) -> str:
        """See `controls.NamesControls`: of their places."""
        return hashlib.sha256(self._controls[items.start : items.stop].tobytes()).hexdigest()

    def _usable(self, index: SupportsIndex) -> tuple[np.void, str, str, int | None]:
        """(entry, tar, key, label) of an item whose headers are as they should be."""
        index = checked_index(index, len(self))
        entry, key = self._entries[index], self._keys[index]
        tar = self._tars[entry["tar"]]
        if entry["kind"] == _DAMAGE:
            raise BadItem(key, "truncated-tar", self._damage[int(entry["tar"])])
        if entry["image"] < 0:
            raise BadItem(key, "image-missing", f"no member of {printable(path_text(tar))} with this key is a picture")
        if entry["kind"] == _NOT_READ:
            raise BadItem(
                key, "unsupported", "of a kind that is not read (docs/data.md); save the picture as PNG or JPEG"
            )
        if entry["label"] == _BAD_LABEL:
            raise BadItem(key, "bad-record", f"its .cls in {tar} is no whole number from 0 to {MOST_CLASSES - 1}")
        label = None if entry["label"] == _NO_LABEL else int(entry["label"])
        check_size(int(entry["image_size"]), key, MOST_PICTURE_BYTES)
        return entry, tar, key, label

    @contextlib.contextmanager
    def _open(self, tar: str, key: str) -> Iterator[BinaryIO]:
        """A tar whose errors are the item's."""
        try:
            with open_regular(tar) as file:
                yield file
        except FileNotFoundError:
            raise BadItem(key, "missing-file", f"{tar} is not there any more") from None
        except OSError as error:
            raise BadItem(key, "unreadable", f"{tar}: {error}") from error

    def fingerprint(self) -> str:
        """Of the tars' names and sizes and the keys, offsets and sizes of the members; known since opening."""
        return self._fingerprint

    def digest(self, items: range) -> str:
        """See `Pictures.digest`."""
        digest = hashlib.sha256("\0".join(self._keys[items.start : items.stop]).encode())
        digest.update(self._entries[items.start : items.stop].tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"TarPictures({self._pattern!r})"

    def _index(self, number: int, tar: str) -> tuple[list[str], list[tuple], list[_Place]]:
        groups: dict[str, dict[str, _Place]] = {}
        keys, rows, controls = [], [], []
        try:
            with open_regular(tar) as file:
                descriptor = file.fileno()
                try:
                    for member in members(descriptor):
                        self._add(member, groups)
                except DamagedTar as error:
                    self._damage[number] = f"{tar}: {error}; copy the tar again to have the rest"
                for key, group in groups.items():
                    for name, kind, image, of in self._items(key, group, descriptor):
                        captions = [value for place in _CAPTIONS for value in of.get(place, _NOWHERE)]
                        label = _label(descriptor, of["cls"]) if "cls" in of else _NO_LABEL
                        keys.append(name)
                        rows.append((number, *image, *captions, kind, label))
                        controls.append(_control(name.removeprefix(key).removeprefix("."), group))
        except InputError as error:
            raise InputError(f"{tar}: {error}") from error
        except OSError as error:
            raise InputError(f"cannot read {tar}: {error.strerror or error}") from error
        if number in self._damage:
            keys.append(printable(path_text(os.path.basename(tar))))
            rows.append((number, -1, 0, *_NOWHERE * len(_CAPTIONS), _DAMAGE, _NO_LABEL))
            controls.append(_NOWHERE)
        return keys, rows, controls

    def _add(self, member: Member, groups: dict[str, dict[str, _Place]]) -> None:
        folder, slash, name = printable(member.name).removeprefix("./").rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem:
            self.others["hidden"] += 1
            return
        group = groups.setdefault(folder + slash + stem, {})
        if ending.lower() in group:  # The first of several members of one name: WebDataset refuses such tars.
            self.others["of a repeated name"] += 1
        else:
            group[ending.lower()] = (member.offset, member.size)

    def _items(
        self, key: str, group: dict[str, _Place], descriptor: int
    ) -> Iterator[tuple[str, int, _Place, dict[str, _Place]]]:
        """(key, kind, place of the picture, places of what goes with it) of a WebDataset key; see the class."""
        images = [ending for ending in group if is_image(f"x.{ending}")]
        stems = {ending.rpartition(".")[0] for ending in images}
        images = [ending for ending in images if _followed_by(ending) not in stems]
        plain = [ending for ending in images if "." not in ending]
        if not images:  # By their first bytes: those of other extensions, or of none.
            unknown = [e for e in group if extension(f"x.{e}") not in NO_PICTURES]
            images = [
                e for e in unknown if begins_like_a_picture(os.pread(descriptor, min(HEAD, group[e][1]), group[e][0]))
            ]
            plain = images[:1]
        if not images:
            yield key, _PICTURE, _NOWHERE, group
        # What is read goes before what is not, as a camera's JPEG beside its raw.
        plain = sorted(plain, key=lambda ending: why_not_read(f"x.{ending}") is not None)[:1]
        for ending in images:
            stem = ending.rpartition(".")[0]
            own = {name: group[f"{stem}.{name}"] for name in (*_CAPTIONS, "cls") if stem and f"{stem}.{name}" in group}
            if ending in plain:
                stem, own = "", {}
            elif plain and not own:
                self.others["another view of a picture"] += 1
                continue
            kind = _NOT_READ if why_not_read(f"x.{ending}") else _PICTURE
            yield f"{key}.{stem}" if stem else key, kind, group[ending], group | own

    def _tar_names(self) -> list[str]:
        """Relative to what they have in common, so that a set that moved stays the same."""
        common = os.path.commonpath([os.path.dirname(tar) for tar in self._tars])
        return [printable(path_text(os.path.relpath(tar, common))) for tar in self._tars]

    def _put_tar_names_before_clashes(self) -> None:
        names = [name.removesuffix(".tar") for name in self._tar_names()]
        long = [f"{names[tar]}/{key}" for tar, key in zip(self._entries["tar"], self._keys, strict=True)]
        for index in clashing(self._keys, long):
            self._keys[index] = long[index]

    def _captions(self, file: BinaryIO, entry: np.void, key: str) -> tuple[tuple[str, float], ...]:
        """Those of the first member that holds any; what is wrong with the first is said if no other is right."""
        problem = None
        for name in ("json",) if self._fields.chosen else _CAPTIONS:
            if entry[name] < 0:
                continue
            try:
                check_size(int(entry[f"{name}_size"]), key, MOST_CAPTION_BYTES)
                data = _read(file, entry[name], entry[f"{name}_size"])
                found = self._record(data, key) if name == "json" else [(caption_text(data, key), 1.0)]
                if captions := weighed(found, key):
                    return captions
            except BadItem as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return ()

    def _record(self, data: bytes, key: str) -> list[tuple[str, float]]:
        try:
            record = json.loads(data.decode("utf-8-sig"))
        except RecursionError:
            raise BadItem(key, "bad-record", "its .json is no JSON: nested too deeply") from None
        except ValueError as error:
            raise BadItem(key, "bad-record", f"its .json is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadItem(key, "bad-record", f"its .json is no object but {type(record).__name__}")
        return self._fields.texts(record, key)


def _followed_by(ending: str) -> str | None:
    """The stem of the ending of the picture whose control picture a member would be; None of what can be none."""
    stem, _, kind = ending.rpartition(".")
    head, _, mark = stem.rpartition(".")
    return head if mark == MARK and f".{kind}" in EXTENSIONS else None


def _control(stem: str, group: Mapping[str, _Place]) -> _Place:
    """Where the control picture is of the picture whose ending has this stem."""
    head = f"{stem}.{MARK}" if stem else MARK
    return next((group[f"{head}{kind}"] for kind in EXTENSIONS if f"{head}{kind}" in group), _NOWHERE)


def _label(descriptor: int, place: _Place) -> int:
    content = os.pread(descriptor, min(place[1], 64), place[0])
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
