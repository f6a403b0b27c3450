"""The members of a tar from its headers alone: ustar, GNU and PAX (pax(1), "ustar Interchange Format").

The standard library's tarfile keeps an object for each member and takes several times as long. It also follows sparse
maps and links, which no WebDataset tar has, and has met damaged files with any exception, or an endless loop.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from pixart_jax.errors import InputError

_BLOCK = 512
_MOST_LONG_NAME = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_WITHOUT_DATA = b"123456"  # links, devices, folders, FIFOs: whatever their size says, no blocks follow
_FILES = b"0\x007"
_LONG_NAME, _PAX, _OLD_SPARSE = b"LxS"


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its path, and where its bytes are."""

    name: str
    offset: int
    size: int


class DamagedTar(Exception):
    """The tar cannot be followed beyond a place; the members before it are whole."""


def members(descriptor: int) -> Iterator[Member]:
    """The files of an open tar, in order. Names keep bytes that are no UTF-8 as surrogate escapes.

    Raises:
      InputError: compressed, or no tar at all; the caller knows, and adds, which file.
      DamagedTar: after the last whole member, where the tar is damaged or ends without its end mark.
    """
    total = os.fstat(descriptor).st_size
    position = 0
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if header == bytes(_BLOCK):
            return
        if len(header) < _BLOCK and (position > 0 or not header):
            raise DamagedTar(f"it ends at byte {total} without an end mark, as if cut short")
        try:
            kind, name, size = _parse(header)
        except ValueError as error:
            if position > 0:
                raise DamagedTar(f"no header at byte {position}: {error}") from None
            for magic, format in _COMPRESSED.items():
                if header.startswith(magic):
                    raise InputError(
                        f"compressed with {format}, so that nothing in it can be read alone; decompress the tar "
                        "(pictures hardly shrink)"
                    ) from None
            raise InputError(f"no tar file: {error}; name another file") from None
        data = position + _BLOCK
        if kind in _WITHOUT_DATA:
            size = 0
        elif kind in _FILES:
            try:
                size = int(pax.get(b"size", size))
            except ValueError:
                size = -1
        if size < 0 or data + size > total:
            raise DamagedTar(f"its member at byte {position} is of {size} bytes, and the tar ends at byte {total}")
        if kind in (_LONG_NAME, _PAX):
            if size > _MOST_LONG_NAME:
                raise DamagedTar(f"a name of {size} bytes at byte {position}")
            content = os.pread(descriptor, size, data)
            if kind == _LONG_NAME:
                long_name = content.split(b"\0")[0]
            else:
                pax = _parse_pax(content, position)
        elif kind == _OLD_SPARSE:
            raise DamagedTar(f"a sparse member at byte {position}; pack without --sparse")
        elif kind != ord("g"):  # global headers hold comments; all others end what long name and PAX header say
            if kind in _FILES:
                name = pax.get(b"path", long_name or name)
                yield Member(name.decode("utf-8", "surrogateescape"), data, size)
            long_name, pax = None, {}
        position = data + -(-size // _BLOCK) * _BLOCK


def _parse(header: bytes) -> tuple[int, bytes, int]:
    """Type, name and size of a header; ValueError when it is none."""
    if len(header) < _BLOCK:
        raise ValueError(f"only {len(header)} bytes")
    # The sum is taken with its own field as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
        raise ValueError("its checksum is wrong")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU's own format keeps times there
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return header[156], name, _number(header[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 for what does not fit."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], signed=field[0] == 0xFF)
    digits = field.split(b"\0")[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise ValueError(f"{field!r} is no number")
    return int(digits, 8)


def _parse_pax(content: bytes, position: int) -> dict[bytes, bytes]:
    """Records "length key=value\\n", where the length is the whole record's."""
    records = {}
    while content:
        digits, space, _ = content[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not (space and equals and content[length - 1 : length] == b"\n"):
            raise DamagedTar(f"a broken PAX header at byte {position}")
        records[key] = value
        content = content[length:]
    return records
