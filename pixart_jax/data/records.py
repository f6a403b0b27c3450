"""One pre-encoded sample as bytes: what a feature shard holds per record (docs/feature_shards.md)."""

from __future__ import annotations

import dataclasses
import json
import numbers
import struct
import zlib

import ml_dtypes
import numpy as np

from pixart_jax.errors import InputError

FORMAT_VERSION = 1

_MAGIC = b"PXFS"
# magic, crc32 of every byte after the crc32 itself, format version, bytes of JSON that follow.
_PREFIX = struct.Struct("<4sIII")
_CHECKED_FROM = 8
# Arrays start at multiples of this, so that views into the record are aligned for any dtype.
_ALIGNMENT = 16

_DTYPES = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
LATENT_DTYPES = ("float16", "float32")
TEXT_DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """An image and its caption after the frozen encoders.

    Attributes:
      key: unique name within the set.
      caption: the caption's text, for people; training reads `text`.
      image_size: original (height, width) in pixels, before resizing and cropping.
      bucket: (height, width) in pixels of what was encoded.
      latent_mean: [h, w, C] float16 or float32, NOT multiplied by the latent scale; the latents themselves when
        `latent_std` is None.
      latent_std: [h, w, C] like `latent_mean`: the posterior's standard deviation; or None.
      text: [length, text_dim] float32, float16 or bfloat16 text features, trimmed to the real tokens (length >= 1).
      label: class label, for class-conditional training; or None.

    Raises:
      InputError: a field has the wrong kind, rank, shape or dtype; names the key and the field.
    """

    key: str
    caption: str
    image_size: tuple[int, int]
    bucket: tuple[int, int]
    latent_mean: np.ndarray
    latent_std: np.ndarray | None
    text: np.ndarray
    label: int | None = None

    def __post_init__(self):
        if not isinstance(self.key, str) or not self.key:
            raise InputError(f"a sample's key must be a non-empty string, not {self.key!r}")
        if not isinstance(self.caption, str):
            self._fail("caption", f"must be a string, not {self.caption!r}")
        for field in ("image_size", "bucket"):
            size = getattr(self, field)
            if not (isinstance(size, tuple) and len(size) == 2 and all(_is_int(n) and n > 0 for n in size)):
                self._fail(field, f"must be a tuple of two positive whole numbers (height, width), not {size!r}")
        self._check_array("latent_mean", rank=3, dtypes=LATENT_DTYPES)
        if self.latent_std is not None:
            self._check_array("latent_std", rank=3, dtypes=LATENT_DTYPES)
            if self.latent_std.shape != self.latent_mean.shape:
                self._fail("latent_std", f"has shape {self.latent_std.shape}, latent_mean {self.latent_mean.shape}")
        self._check_array("text", rank=2, dtypes=TEXT_DTYPES)
        if self.label is not None and not (_is_int(self.label) and self.label >= 0):
            self._fail("label", f"must be a whole number from 0 up, or None, not {self.label!r}")

    def _check_array(self, field: str, *, rank: int, dtypes: tuple[str, ...]) -> None:
        array = getattr(self, field)
        if not isinstance(array, np.ndarray):
            self._fail(field, f"must be a numpy array, not {type(array).__name__}")
        if array.ndim != rank or 0 in array.shape:
            self._fail(field, f"must have {rank} dimensions, none of them empty, but has shape {array.shape}")
        if array.dtype.name not in dtypes:
            self._fail(field, f"has dtype {array.dtype.name}; store it as {' or '.join(dtypes)}")

    def _fail(self, field: str, problem: str) -> None:
        raise InputError(f"sample {self.key!r}: {field} {problem}")


def encode_sample(sample: Sample) -> bytes:
    """The record of one sample: prefix, JSON header, then the raw little-endian arrays.

    Returns:
      bytes that `decode_sample` turns back into an equal sample, bit for bit.
    """
    arrays = {"latent_mean": sample.latent_mean, "latent_std": sample.latent_std, "text": sample.text}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    header = {
        "key": sample.key,
        "caption": sample.caption,
        "image_size": [int(n) for n in sample.image_size],
        "bucket": [int(n) for n in sample.bucket],
        "label": None if sample.label is None else int(sample.label),
        "arrays": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in arrays.items()},
    }
    json_bytes = json.dumps(header, separators=(",", ":")).encode()
    record = bytearray(_PREFIX.pack(_MAGIC, 0, FORMAT_VERSION, len(json_bytes)))
    record += json_bytes
    for array in arrays.values():
        record += bytes(-len(record) % _ALIGNMENT)
        record += np.ascontiguousarray(array, dtype=_DTYPES[array.dtype.name]).tobytes()
    struct.pack_into("<I", record, len(_MAGIC), zlib.crc32(memoryview(record)[_CHECKED_FROM:]))
    return bytes(record)


def decode_sample(record: bytes) -> Sample:
    """The sample of one record. Its arrays are read-only views into `record`: nothing is copied.

    Raises:
      InputError: the record is truncated, damaged, of another format or of a newer version. The caller knows, and adds,
        which file and record it was.
    """
    if len(record) < _PREFIX.size or record[: len(_MAGIC)] != _MAGIC:
        raise InputError(
            f"not a feature record: {len(record)} bytes that start with {bytes(record[:4])!r} instead of {_MAGIC!r}"
        )
    _, crc, version, header_size = _PREFIX.unpack_from(record)
    found = zlib.crc32(memoryview(record)[_CHECKED_FROM:])
    if found != crc:
        raise InputError(f"the record is damaged: its checksum is {found:08x}, it was written as {crc:08x}")
    if version != FORMAT_VERSION:
        raise InputError(f"the record has format version {version}, this code reads version {FORMAT_VERSION}")
    try:
        header_end = _PREFIX.size + header_size
        header = json.loads(record[_PREFIX.size : header_end])
        return Sample(
            key=header["key"],
            caption=header["caption"],
            image_size=tuple(header["image_size"]),
            bucket=tuple(header["bucket"]),
            label=header["label"],
            **_view_arrays(record, header_end, header["arrays"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        # The checksum holds, so this is no damage: another program wrote a record that only looks like ours.
        raise InputError(f"malformed feature record: {type(error).__name__}: {error}") from error


def _view_arrays(record: bytes, offset: int, described: dict) -> dict[str, np.ndarray | None]:
    arrays = {"latent_std": None}
    for name, description in described.items():
        offset += -offset % _ALIGNMENT
        dtype, shape = _DTYPES[description["dtype"]], tuple(description["shape"])
        if not all(_is_int(n) and n > 0 for n in shape):
            raise ValueError(f"array {name} has shape {shape}")
        count = int(np.prod(shape, dtype=object))
        arrays[name] = np.frombuffer(record, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    if offset != len(record):
        raise ValueError(f"the header describes {offset} bytes, the record has {len(record)}")
    return arrays


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
