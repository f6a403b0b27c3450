"""Pictures of a TensorFlow dataset that lies prepared on disk."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from pixart_jax.data.pictures.base import BadItem, Picture, Words, checked_index, weighed
from pixart_jax.errors import InputError

_CAPTION_FEATURES = ("captions", "caption", "text")
_LABEL_FEATURES = ("label", "labels")


class TfdsPictures:
    """A split of a dataset of tensorflow-datasets, in the order of its files.

    Needs a feature `image`, whose stored bytes are handed on as they are (a plain uint8 tensor becomes PNG), and
    captions in `captions`, `caption` or `text` (a text, a sequence of texts or of {"text"}) or a ClassLabel in `label`
    or `labels`. Several captions of a picture have equal weights. The key is the name of the dataset, the split and
    the number of the item. Nothing is downloaded or prepared, and TensorFlow is not needed. Opening reads the dataset's
    description alone.

    Args:
      name: NAME[/CONFIG][:VERSION][:SPLIT]; the split is "train" when not given, and may be a slice, "train[:10%]".
      data_dir: where TensorFlow datasets are kept; None for the library's default.

    Raises:
      InputError: the dataset is not prepared in a format with random access, or lacks the features or the split.
    """

    def __init__(self, name: str, *, data_dir: str | None):
        import tensorflow_datasets as tfds  # takes seconds

        match = re.fullmatch(r"([\w/]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", name)
        if match is None:
            raise InputError(
                f"tfds:{name}: write tfds:NAME[/CONFIG][:VERSION][:SPLIT], such as tfds:coco_captions:train"
            )
        self._name, self._split = match[1], match[2] or "train"
        # The library has an exception of its own for each thing that can be missing.
        try:
            source = tfds.data_source(self._name, split=self._split, data_dir=data_dir, download=False)
            features = dict(source.dataset_info.features)
            files = source.dataset_info.splits[self._split].filepaths
        except Exception as error:
            raise InputError(_how_to_prepare(self._name, self._split, data_dir, error)) from error
        missing = [str(file) for file in files if not os.path.exists(file)]
        if missing:
            raise InputError(
                f"tfds:{name}: {len(missing)} of its {len(files)} files are not there, the first is {missing[0]}; copy "
                "or prepare the dataset again"
            )
        self._check_image(tfds, features)
        self._caption = next((n for n in _CAPTION_FEATURES if _is_text(tfds, features.get(n))), None)
        is_label = tfds.features.ClassLabel
        self._label = next((n for n in _LABEL_FEATURES if isinstance(features.get(n), is_label)), None)
        if self._caption is None and self._label is None:
            raise InputError(
                f"tfds:{name}: needs texts in captions, caption or text, or a ClassLabel in label or labels; it has "
                f"{', '.join(features)}"
            )
        self.class_names: tuple[str, ...] = tuple(features[self._label].names) if self._label else ()
        # Pictures stay encoded, those that nobody asked for too. Not so the pixels of a plain tensor.
        decoders = {n: tfds.decode.SkipDecoding() for n, f in features.items() if isinstance(f, tfds.features.Image)}
        self.others: dict[str, int] = {}
        self._source = tfds.data_source(
            self._name, split=self._split, data_dir=data_dir, download=False, decoders=decoders
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Picture:
        item, key = self._item(index)
        _, captions, label = self._words(item, key)
        if not captions and label is None:
            raise BadItem(key, "caption-missing", "neither a caption nor a label")
        return Picture(key=key, data=_encoded(item), captions=captions, label=label)

    def words(self, index: SupportsIndex) -> Words:
        """See `Pictures.words`; here the picture is read all the same, as they are of one record."""
        return self._words(*self._item(index))

    def data(self, index: SupportsIndex) -> bytes:
        """See `Pictures.data`."""
        return _encoded(self._item(index)[0])

    def file(self, index: SupportsIndex) -> None:
        """See `Pictures.file`."""
        return None

    def _item(self, index: SupportsIndex) -> tuple[dict, str]:
        index = checked_index(index, len(self))
        key = f"{self._name}/{self._split}/{index:09d}"
        try:
            return self._source[index], key
        except Exception as error:  # of the file, the record's format or the decoder
            raise BadItem(key, "unreadable", f"{error!r:.500}") from error

    def _words(self, item: dict, key: str) -> Words:
        label = int(item[self._label]) if self._label else None
        if label is not None and not 0 <= label < len(self.class_names):
            if label != -1:
                raise BadItem(key, "bad-record", f"label {label}, of {len(self.class_names)} classes")
            label = None  # the library's mark of test splits whose labels are secret
        return Words(key, weighed([(text, 1.0) for text in self._texts(item, key)], key), label)

    def fingerprint(self) -> str:
        """Of the dataset's full name, the split, and the numbers of items and bytes in its files; free."""
        info = self._source.dataset_info
        splits = {n: [split.num_bytes, *split.shard_lengths] for n, split in info.splits.items()}
        described = [info.full_name, self._split, len(self), splits]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def digest(self, items: range) -> str:
        """See `Pictures.digest`; of the whole, which is never changed in part."""
        return self.fingerprint()

    def __repr__(self) -> str:
        return f"TfdsPictures({self._name!r}, split={self._split!r})"

    def _texts(self, item: dict, key: str) -> list[str]:
        if self._caption is None:
            return []
        value = item[self._caption]
        value = value["text"] if isinstance(value, dict) else value
        try:
            return [value.decode()] if isinstance(value, bytes) else [text.decode() for text in value]
        except UnicodeDecodeError as error:
            raise BadItem(key, "caption-not-utf8", str(error)) from error

    def _check_image(self, tfds: Any, features: dict) -> None:
        image = features.get("image")
        fine = (
            isinstance(image, tfds.features.Tensor)
            and image.np_dtype == np.uint8
            and len(image.shape) == 3
            and image.shape[-1] in (1, 3, 4)
        )
        if isinstance(image, tfds.features.Image):
            fine = image.np_dtype in (np.uint8, np.uint16)  # floats are stored as the bytes of a PNG that shows noise
        if not fine:
            raise InputError(
                f"tfds:{self._name}: needs a feature image of 8 or 16 bits per channel; it has the features "
                f"{', '.join(features)}, image: {image}"
            )


def _is_text(tfds: Any, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        feature = dict(feature).get("text")
    return isinstance(feature, tfds.features.Text)


def _encoded(item: dict) -> bytes:
    image = item["image"]
    return image if isinstance(image, bytes) else _png(image)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _how_to_prepare(name: str, split: str, data_dir: str | None, error: Exception) -> str:
    where = "" if data_dir is None else f", data_dir={data_dir!r}"
    problem = str(error).partition("\n")[0][:300].removesuffix(" Possible root causes:").rstrip(".")
    return (
        f"tfds:{name}:{split} cannot be read at random: {problem}. To prepare a dataset that the library knows "
        "(pip install tensorflow-cpu, which many of them need for that alone): "
        f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare(); else name its data_dir"
    )
