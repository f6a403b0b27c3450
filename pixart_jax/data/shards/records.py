"""One pre-encoded sample as bytes: what a feature shard holds per record (docs/feature_shards.md)."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import struct
import zlib
from typing import Any, NoReturn, Protocol

import ml_dtypes
import numpy as np

from pixart_jax.errors import InputError

FORMAT_VERSION = 2

_MAGIC = b"PXFS"
# magic, crc32 of every byte after the crc32 itself, format version, bytes of JSON that follow.
_PREFIX = struct.Struct("<4sIII")
_CHECKED_FROM = 8
# Arrays start at multiples of this, so that views into the record are aligned for any dtype.
_ALIGNMENT = 16

_DTYPES = {
    "int8": np.dtype(np.int8),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
LATENT_DTYPES = ("float16", "float32")
# Arrays of a sample that are of the latents' shape, in the order of the record; the first is always there.
LATENT_FIELDS = ("latent_mean", "latent_std", "control_mean", "control_std", "noise")
TEXT_DTYPES = ("float32", "float16", "bfloat16", "int8")

# int8 codes are symmetric: -128 stays unused, so that x and -x are stored alike.
_LARGEST_CODE = 127


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """One caption of an image, and what the text encoder made of it.

    Attributes:
      caption: for people; training reads the features.
      features: [length, text_dim] float32, float16, bfloat16 or int8, trimmed to the real tokens (length >= 1).
      scale: float32[length] for int8, whose values are features · scale[:, None] (see `quantize`); else None.
      weight: this caption's share of the draws beside the image's other captions, above 0.

    Raises:
      InputError: a field has the wrong kind, shape or dtype; names the caption and the field.
    """

    caption: str
    features: np.ndarray
    scale: np.ndarray | None = None
    weight: float = 1.0

    def __post_init__(self):
        if not isinstance(self.caption, str):
            raise InputError(f"a text's caption must be a string, not {self.caption!r}")
        owner = f"text {self.caption[:60]!r}:"
        _check_array(owner, "features", self.features, rank=2, dtypes=TEXT_DTYPES)
        if self.features.dtype == np.int8:
            scale = _check_array(owner, "scale", self.scale, rank=1, dtypes=("float32",))
            if len(scale) != len(self.features):
                raise InputError(f"{owner} scale has {len(scale)} numbers, features {len(self.features)} tokens")
        elif self.scale is not None:
            raise InputError(f"{owner} scale belongs to int8 features, but these are {self.features.dtype.name}")
        if not (_is_real(self.weight) and math.isfinite(self.weight) and self.weight > 0):
            raise InputError(f"{owner} weight must be a finite number above 0, not {self.weight!r}")

    def decode_into(self, out: np.ndarray) -> None:
        """Writes the features, dequantised where they are int8, to `out` [length, text_dim] of any float dtype."""
        if self.scale is None:
            np.copyto(out, self.features, casting="unsafe")
        else:
            np.multiply(self.features, self.scale[:, None], out=out, dtype=np.float32, casting="unsafe")

    def values(self) -> np.ndarray:
        """float32[length, text_dim]: the features, dequantised where they are int8."""
        out = np.empty(self.features.shape, np.float32)
        self.decode_into(out)
        return out


def quantize(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features as int8 with one scale per token: half the bytes of bfloat16, for `Text(caption, *quantize(features))`.

    Symmetric, scale = max|x| / 127 of the token, rounded to nearest even: no value is off by more than half a step of
    its token. Channels far above the rest widen the step for all of a token, so look at the cosine of your encoder's.

    Args:
      features: [length, text_dim], of a float dtype.

    Returns:
      int8[length, text_dim] in [-127, 127] and scale float32[length], 0 for a token of zeros.

    Raises:
      InputError: a number is NaN or infinite.
    """
    features = np.asarray(features, np.float32)
    if not np.isfinite(features).all():
        raise InputError("text features to quantize hold NaN or infinity; look at the text encoder's dtype")
    scale = np.abs(features).max(axis=1) / np.float32(_LARGEST_CODE)
    # A scale of 0 (zeros, or numbers too small for float32 to hold a 127th of) makes every code 0.
    steps = np.divide(features, scale[:, None], out=np.zeros_like(features), where=scale[:, None] > 0)
    # Clipped, because the scale of the smallest numbers has few bits, and may be too small by a third.
    return np.clip(np.rint(steps), -_LARGEST_CODE, _LARGEST_CODE).astype(np.int8), scale


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """An image and its captions after the frozen encoders.

    Attributes:
      key: unique name within the set.
      image_size: original (height, width) in pixels, before resizing and cropping.
      bucket: (height, width) in pixels of what was encoded.
      latent_mean: [h, w, C] float16 or float32, NOT multiplied by the latent scale; the latents themselves when
        `latent_std` is None.
      latent_std: [h, w, C] like `latent_mean`: the posterior's standard deviation; or None.
      texts: its captions, all of one dtype and width; empty in sets for class-conditional training alone.
      label: class label, for class-conditional training; or None.
      control_mean, control_std: likewise of a control picture of the same size, such as the edges; or None.
      noise: [h, w, C] like `latent_mean`, which a model drew of it, in its own units; or None.
      align: [a, b, F] float16 or float32: a frozen network's features of the picture, in a grid of their own that
        covers it; or None.

    Raises:
      InputError: a field has the wrong kind, rank, shape or dtype; names the key and the field.
    """

    key: str
    image_size: tuple[int, int]
    bucket: tuple[int, int]
    latent_mean: np.ndarray
    latent_std: np.ndarray | None
    texts: tuple[Text, ...]
    label: int | None = None
    control_mean: np.ndarray | None = None
    control_std: np.ndarray | None = None
    noise: np.ndarray | None = None
    align: np.ndarray | None = None

    def __post_init__(self):
        if not isinstance(self.key, str) or not self.key:
            raise InputError(f"a sample's key must be a non-empty string, not {self.key!r}")
        for field in ("image_size", "bucket"):
            size = getattr(self, field)
            if not (isinstance(size, tuple) and len(size) == 2 and all(_is_int(n) and n > 0 for n in size)):
                self._fail(field, f"must be a tuple of two positive whole numbers (height, width), not {size!r}")
        owner = f"sample {self.key!r}:"
        _check_array(owner, "latent_mean", self.latent_mean, rank=3, dtypes=LATENT_DTYPES)
        for field in LATENT_FIELDS[1:]:
            if (array := getattr(self, field)) is not None:
                _check_array(owner, field, array, rank=3, dtypes=LATENT_DTYPES)
                if array.shape != self.latent_mean.shape:
                    self._fail(field, f"has shape {array.shape}, latent_mean {self.latent_mean.shape}")
        if self.align is not None:
            _check_array(owner, "align", self.align, rank=3, dtypes=LATENT_DTYPES)
        if self.control_std is not None and self.control_mean is None:
            self._fail("control_std", "is there without control_mean")
        if not (isinstance(self.texts, tuple) and all(isinstance(text, Text) for text in self.texts)):
            self._fail("texts", f"must be a tuple of Text, not {self.texts!r:.100}")
        kinds = {(text.features.dtype.name, text.features.shape[1]) for text in self.texts}
        if len(kinds) > 1:
            self._fail("texts", f"must be of one dtype and width, but are {sorted(kinds)}")
        if self.label is not None and not (_is_int(self.label) and self.label >= 0):
            self._fail("label", f"must be a whole number from 0 up, or None, not {self.label!r}")

    @property
    def caption(self) -> str:
        """The caption of the largest weight, the first of several; "" without any."""
        return self.draw_text().caption if self.texts else ""

    def draw_text(self, rng: np.random.Generator | None = None) -> Text:
        """One of `texts` (at least one), drawn by their weights; without `rng` the one of the largest weight.

        Draws no number where there is no choice.
        """
        if rng is None or len(self.texts) == 1:
            return max(self.texts, key=lambda text: text.weight)
        # Divided by the largest first, because the sum of finite weights need not be finite.
        ends = np.cumsum(np.divide([text.weight for text in self.texts], max(text.weight for text in self.texts)))
        return self.texts[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]

    def _fail(self, field: str, problem: str) -> NoReturn:
        raise InputError(f"sample {self.key!r}: {field} {problem}")


class SampleSource(Protocol):
    """Random access to samples, 0 <= index < len: a Grain data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def encode_sample(sample: Sample) -> bytes:
    """The record of one sample: prefix, JSON header, then the raw little-endian arrays.

    Returns:
      bytes that `decode_sample` turns back into an equal sample, bit for bit.
    """
    fields = {name: getattr(sample, name) for name in (*LATENT_FIELDS, "align")}
    latents = {name: array for name, array in fields.items() if array is not None}
    header = {
        "key": sample.key,
        "image_size": [int(n) for n in sample.image_size],
        "bucket": [int(n) for n in sample.bucket],
        "label": None if sample.label is None else int(sample.label),
        "latents": {name: _described(array) for name, array in latents.items()},
        "texts": [
            {"caption": text.caption, "weight": float(text.weight), "features": _described(text.features)}
            for text in sample.texts
        ],
    }
    arrays = [*latents.values(), *(a for text in sample.texts for a in (text.features, text.scale) if a is not None)]
    json_bytes = json.dumps(header, separators=(",", ":")).encode()
    record = bytearray(_PREFIX.pack(_MAGIC, 0, FORMAT_VERSION, len(json_bytes)))
    record += json_bytes
    for array in arrays:
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
        raise InputError(
            f"the record has format version {version}, this code reads version {FORMAT_VERSION}; make the set again "
            "with this version of pixart_jax, or update pixart_jax if a newer one made it"
        )
    try:
        header_end = _PREFIX.size + header_size
        header = json.loads(record[_PREFIX.size : header_end])
        arrays = _Arrays(record, header_end)
        latents: dict[str, Any] = {"latent_std": None}
        latents |= {name: arrays.take(described) for name, described in header["latents"].items()}
        texts = tuple(_decode_text(described, arrays) for described in header["texts"])
        arrays.finish()
        return Sample(
            key=header["key"],
            image_size=tuple(header["image_size"]),
            bucket=tuple(header["bucket"]),
            label=header["label"],
            texts=texts,
            **latents,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        # The checksum holds, so this is no damage: another program wrote a record that only looks like ours.
        raise InputError(f"malformed feature record: {type(error).__name__}: {error}") from error


def _decode_text(described: dict, arrays: _Arrays) -> Text:
    features = arrays.take(described["features"])
    scale = arrays.take({"dtype": "float32", "shape": features.shape[:1]}) if features.dtype == np.int8 else None
    return Text(described["caption"], features, scale, described["weight"])


class _Arrays:
    """Takes one array after another off the end of a record."""

    def __init__(self, record: bytes, offset: int):
        self._record = record
        self._offset = offset

    def take(self, described: dict) -> np.ndarray:
        self._offset += -self._offset % _ALIGNMENT
        dtype, shape = _DTYPES[described["dtype"]], tuple(described["shape"])
        if not all(_is_int(n) and n > 0 for n in shape):
            raise ValueError(f"an array has shape {shape}")
        count = int(np.prod(shape, dtype=object))
        array = np.frombuffer(self._record, dtype, count, self._offset).reshape(shape)
        self._offset += count * dtype.itemsize
        return array

    def finish(self) -> None:
        if self._offset != len(self._record):
            raise ValueError(f"the header describes {self._offset} bytes, the record has {len(self._record)}")


def _described(array: np.ndarray) -> dict:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _check_array(owner: str, field: str, array: object, *, rank: int, dtypes: tuple[str, ...]) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{owner} {field} must be a numpy array, not {type(array).__name__}")
    if array.ndim != rank or 0 in array.shape:
        raise InputError(
            f"{owner} {field} must have {rank} dimension(s), none of them empty, but has shape {array.shape}"
        )
    if array.dtype.name not in dtypes:
        raise InputError(f"{owner} {field} has dtype {array.dtype.name}; store it as {' or '.join(dtypes)}")
    return array


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_int(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
