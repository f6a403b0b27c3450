"""Features that PixArt's own tools extracted (spec §6.1), read as they lie on disk: nothing is encoded again.

What the files do not say, and their reader has to know:
- The latents are the autoencoder's posterior, NOT scaled; α's autoencoder is Stable Diffusion's, Σ's is SDXL's.
- α's single-scale latents are float32. The others were computed in float16 by autocast.
- The multi-scale tools resize a picture to its bucket's height and width at once, which stretches it by up to the
  difference of their shapes; training from pixels crops instead. The single-scale tools crop the centre to a square.
- α's captions were cleaned before T5 read them, Σ's only stripped.
- Where two pictures got one file name, the tools kept the features of the one that came first, in an order that no file
  tells for the latents. Such pictures are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import SupportsIndex, TypeGuard

import numpy as np

from pixart_jax.data.npy import load_array
from pixart_jax.data.pictures.base import BadItem, checked_index, printable, printable_path, read_file, shown
from pixart_jax.data.pictures.json_records import JsonRecords
from pixart_jax.errors import InputError

# Pixels of a latent's cell, of both autoencoders.
_DOWNSAMPLE = 8
# How many records, spread over the list, are looked up to find out how a folder's files are named.
_PROBED = 200


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """The features of one picture and one caption.

    Attributes:
      key: the record's path; unique within the list.
      caption: the record's, as found; "" when it has none. T5 may have read it cleaned.
      image_size: (height, width) of the picture in pixels, by the record.
      bucket: (height, width) in pixels of what was encoded: 8 times the latents'.
      latent_mean: [h, w, 4] float32 or float16, not scaled.
      latent_std: [h, w, 4] like it, >= 0.
      text: [length, text_dim] float32 or float16, without the padding; length >= 1.
    """

    key: str
    caption: str
    image_size: tuple[int, int]
    bucket: tuple[int, int]
    latent_mean: np.ndarray
    latent_std: np.ndarray
    text: np.ndarray


class ReferenceFeatureSource:
    """Random access to the features of a list's records; see `open_reference_features`. Threads may share it; it
    pickles."""

    def __init__(
        self,
        json_list: str | os.PathLike,
        *,
        text_dir: str | os.PathLike,
        latents_dir: str | os.PathLike,
        caption_field: str,
        latent_channels: int,
        text_dim: int,
    ):
        paths: dict[int, str] = {}

        def visit(index: int, record: Mapping) -> None:
            if isinstance(record.get("path"), str) and record["path"]:
                paths[index] = record["path"]

        self._records = JsonRecords(json_list, visit)
        self._caption_field, self._latent_channels, self._text_dim = caption_field, latent_channels, text_dim
        if not paths:
            raise InputError(f"{json_list}: no record has a path; name the list that the features were extracted from")
        self._text = _Folder(text_dir, ".npz", paths)
        self._latents = _Folder(latents_dir, ".npy", paths)
        first: dict[str, int] = {}
        for index, path in paths.items():
            first.setdefault(path, index)
        self._repeated = frozenset(index for index, path in paths.items() if first[path] != index)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> ReferenceFeatures:
        """Item 0 <= index < len.

        Raises:
          BadItem: with a reason of `pixart_jax.data.pictures.BadItem`, or
            "ambiguous-name": several pictures of the list have this file name;
            "repeated-path": an earlier record has this path, and the features are of that one's caption;
            "damaged": a file is not what numpy writes;
            "wrong-features": whole arrays of the wrong shape or type, a mask that is none, a negative deviation;
            "not-finite": NaN or infinity, which T5 in float16 is known for.
          IndexError: there is no such item.
        """
        index = checked_index(index, len(self))
        record = self._records.read(index)
        path, height, width = record.get("path"), record.get("height"), record.get("width")
        if not isinstance(path, str) or not path:
            raise BadItem(self._records.name(index), "bad-record", f"path must name a file, not {shown(path)}")
        key = printable(path)
        if not (_is_side(height) and _is_side(width)):
            raise BadItem(
                key, "bad-record", f"height and width must be positive whole numbers, not {shown((height, width))}"
            )
        caption = record.get(self._caption_field)
        caption = "" if caption is None else caption
        if not isinstance(caption, str):
            raise BadItem(key, "bad-record", f"{self._caption_field} must be text, not {shown(caption)}")
        if index in self._repeated:
            raise BadItem(key, "repeated-path", "an earlier record has this path, and the features are of its caption")
        mean, std = self._read_latents(self._latents.file(path, key), key)
        return ReferenceFeatures(
            key=key,
            caption=printable(caption),
            image_size=(height, width),
            bucket=(mean.shape[0] * _DOWNSAMPLE, mean.shape[1] * _DOWNSAMPLE),
            latent_mean=mean,
            latent_std=std,
            text=self._read_text(self._text.file(path, key), key),
        )

    def fingerprint(self) -> str:
        """Hex digest of the list's bytes and of how the files are named; known since opening."""
        described = [self._records.digest, self._text.naming, self._latents.naming, self._caption_field]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"ReferenceFeatureSource({str(self._records.path)!r})"

    def _read_latents(self, path: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, each [h, w, C]."""
        latents = _load(path, key)
        channels = self._latent_channels
        if not isinstance(latents, np.ndarray):
            raise BadItem(key, "wrong-features", f"{path} is an .npz archive, not the .npy file of an array")
        _check(latents, path, key, ndim=3)
        if latents.shape[0] != 2 * channels:
            raise BadItem(
                key,
                "wrong-features",
                f"{path} has shape {latents.shape}; mean and deviation of {channels} channels are {2 * channels} rows",
            )
        _check_finite(latents, path, key)
        # C order and rows together, as records store them.
        mean, std = (np.ascontiguousarray(half.transpose(1, 2, 0)) for half in (latents[:channels], latents[channels:]))
        if (std < 0).any():
            raise BadItem(key, "wrong-features", f"{path}: rows {channels} and up hold negative numbers, no deviations")
        return mean, std

    def _read_text(self, path: str, key: str) -> np.ndarray:
        """Features without padding: [length, text_dim]."""
        arrays = _load(path, key)
        if isinstance(arrays, np.ndarray) or "caption_feature" not in arrays:
            raise BadItem(key, "wrong-features", f"{path} has no caption_feature; it is no file of text features")
        feature, mask = arrays["caption_feature"], arrays.get("attention_mask")
        _check(feature, path, key, ndim=3)
        if feature.shape[0] != 1 or feature.shape[2] != self._text_dim:
            raise BadItem(
                key, "wrong-features", f"{path}: caption_feature is {feature.shape}, not (1, tokens, {self._text_dim})"
            )
        length = feature.shape[1]
        if mask is not None:
            if mask.shape != feature.shape[:2] or mask.dtype.kind not in "biuf":
                raise BadItem(
                    key,
                    "wrong-features",
                    f"{path}: attention_mask is {mask.dtype}{list(mask.shape)}, caption_feature {list(feature.shape)}",
                )
            length = int(np.count_nonzero(mask))
            # T5's padding comes last, so that a length says it all.
            if length == 0 or not np.array_equal(mask[0], np.arange(mask.shape[1]) < length):
                raise BadItem(key, "wrong-features", f"{path}: attention_mask is not ones and then zeros")
        text = np.ascontiguousarray(feature[0, :length])
        _check_finite(text, path, key)
        return text


def open_reference_features(
    json_list: str | os.PathLike,
    *,
    text_dir: str | os.PathLike,
    latents_dir: str | os.PathLike,
    caption_field: str = "prompt",
    latent_channels: int = 4,
    text_dim: int = 4096,
) -> ReferenceFeatureSource:
    """Opens the features that PixArt's tools extracted from a list of pictures.

    Files are found by the record's path, a/b/c.d.png, under one of the names that the tools give: a/b_c.d (α, and what
    the loaders of multi-scale features look for), c.d (Σ) or c (latents of Σ); the one is used that most of 200 records
    spread over the list have. Σ's two captions are two folders: open each with its caption_field.

    Args:
      json_list: the list given to the tools, .json or .jsonl: `path`, `height`, `width` and the caption.
      text_dir: folder of .npz files, such as caption_feature_wmask: caption_feature [1, T, text_dim] and attention_mask
        [1, T]; without a mask all tokens count, as in the reference.
      latents_dir: folder of .npy files, such as img_vae_features_512resolution/noflip: [2·latent_channels, h, w].
      caption_field: the caption that text_dir is of: "prompt", or "sharegpt4v".
      latent_channels: of the autoencoder.
      text_dim: of the text encoder.

    Raises:
      InputError: the list cannot be read (see `JsonRecords`), or one of the folders has no file for it.
    """
    return ReferenceFeatureSource(
        json_list,
        text_dir=text_dir,
        latents_dir=latents_dir,
        caption_field=caption_field,
        latent_channels=latent_channels,
        text_dim=text_dim,
    )


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _joined(path: str) -> str:
    """a/b/c.d.png -> a/b_c.d"""
    return os.path.splitext("_".join(path.rsplit("/", 1)))[0]


def _basename(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _to_first_dot(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


_NAMINGS: dict[str, Callable[[str], str]] = {"joined": _joined, "basename": _basename, "to-first-dot": _to_first_dot}


class _Folder:
    """A folder of features: how its files are named, and which names more than one picture would have."""

    def __init__(self, folder: str | os.PathLike, extension: str, paths: Mapping[int, str]):
        self._folder = pathlib.Path(folder).absolute()
        self._extension = extension
        if not self._folder.is_dir():
            raise InputError(f"{folder} is no folder; name the one that holds the {extension} features")
        all_paths = list(paths.values())
        # All of them where few were extracted, by the tools' start and end index.
        found = self._count_files(all_paths[:: -(-len(all_paths) // _PROBED)]) or self._count_files(all_paths)
        if not found:
            tried = ", ".join(sorted({f"{name(all_paths[0])}{extension}" for name in _NAMINGS.values()}))
            raise InputError(
                f"{printable_path(folder)} has no features of this list: for its first record there should be one of "
                f"{printable(tried)}; name the folder that holds the files themselves"
            )
        # The first of equals: where paths have no folder and no dots, all names are one.
        self.naming = max(found, key=lambda naming: found[naming])
        owner: dict[str, str] = {}
        ambiguous = set()
        for path in all_paths:
            name = _NAMINGS[self.naming](path)
            if owner.setdefault(name, path) != path:
                ambiguous.add(name)
        self._ambiguous = frozenset(ambiguous)

    def _count_files(self, paths: Sequence[str]) -> dict[str, int]:
        """How many of the pictures have a file, by naming; only the namings by which any has."""
        counts = {
            naming: sum(os.path.exists(self._folder / f"{name(path)}{self._extension}") for path in paths)
            for naming, name in _NAMINGS.items()
        }
        return {naming: count for naming, count in counts.items() if count}

    def file(self, path: str, key: str) -> str:
        name = _NAMINGS[self.naming](path)
        if name in self._ambiguous:
            raise BadItem(
                key, "ambiguous-name", f"{printable(name)}{self._extension} may be of any picture with this file name"
            )
        return str(self._folder / f"{name}{self._extension}")


# A hundred times what the longest caption's features take.
_MOST_BYTES = 1 << 29


def _load(path: str, key: str) -> np.ndarray | dict[str, np.ndarray]:
    data = read_file(path, key, _MOST_BYTES)
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return load_array(io.BytesIO(data), len(data))
        arrays = {}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in ("caption_feature", "attention_mask"):
                if f"{name}.npy" in archive.namelist():
                    size = archive.getinfo(f"{name}.npy").file_size
                    if size > _MOST_BYTES:
                        raise ValueError(f"{name} unpacks to {size:,} bytes")
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = load_array(member, size)
        return arrays
    except Exception as error:  # of numpy, zipfile, zlib, struct, tokenize or ast, by where the damage is
        words = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise BadItem(key, "damaged", f"{printable_path(path)}, {len(data)} bytes: {words:.200}") from error


def _check(array: np.ndarray, path: str, key: str, *, ndim: int) -> None:
    if array.dtype not in (np.float32, np.float16) or array.ndim != ndim or array.size == 0:
        raise BadItem(
            key, "wrong-features", f"{path}: {array.dtype}{list(array.shape)}, not {ndim} axes of float32 or float16"
        )


def _check_finite(array: np.ndarray, path: str, key: str) -> None:
    if not np.isfinite(array).all():
        count = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise BadItem(key, "not-finite", f"{path}: {count} of {array.size} numbers are NaN or infinite")
