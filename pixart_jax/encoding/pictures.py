"""Units of pictures that are decoded, cropped and encoded: the work of `tools.extract_features`."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from pixart_jax.data.buckets import Bucket, nearest_bucket, training_buckets
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.decoding import MAX_RATIO, BadImage, decode, fit
from pixart_jax.data.pictures import BadItem, Pictures
from pixart_jax.data.shards.manifest import Manifest
from pixart_jax.data.shards.records import Sample, Text, quantize
from pixart_jax.encoding.edges import MakeControl
from pixart_jax.encoding.engine import ONLY
from pixart_jax.encoding.picture_features import PictureFeatures
from pixart_jax.encoding.pretrained import Autoencoder, T5TextEncoder
from pixart_jax.files.unit_work import Skipped
from pixart_jax.tokens import DOWNSAMPLE

# Of every PixArt; what buckets must be multiples of, with DOWNSAMPLE.
PATCH_SIZE = 2

_TEXT_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}

E = TypeVar("E")
T = TypeVar("T")


class Prepared(NamedTuple):
    """A picture that is to be encoded: its pixels uint8[H, W, 3] and bucket by set, and its cleaned captions; likewise
    the pixels of the control picture that was given beside it."""

    key: str
    image_size: tuple[int, int]
    pixels: dict[str, tuple[Bucket, np.ndarray]]
    captions: list[tuple[str, float]]
    label: int | None
    control: dict[str, np.ndarray]


class Waiting(NamedTuple):
    """A picture that waits for its batch to be full: its place among those kept, its pixels, what its control picture
    is made of."""

    place: int
    pixels: np.ndarray
    control: np.ndarray


class EncodedPictures:
    """Units of pictures that are decoded, cropped to their buckets and encoded here.

    Args:
      pictures: the source.
      resolutions: of the sets; several share the decoding and the captions.
      autoencoder, text_encoder: without a text encoder the sets are for class-conditional training.
      caption_cleaning: a key of `captions.CLEANING`.
      text_dtype: what text is stored as: "bfloat16", "float16", "float32", or "int8" with a scale per token.
      about: JSON-able, for the recipe: what the source and the encoders are.
      items_per_unit, batch_size: of the engine; pictures and captions at a time.
      min_side: pixels; smaller pictures are skipped.
      max_pixels: larger ones are skipped before anything of them is decoded.
      max_ratio: of the longer side to the shorter; what is longer is skipped rather than cropped beyond recognition.
      num_threads: that decode.
      control: one of `manifest.CONTROLS`: what the control pictures are, or that there are none.
      make_control: makes them, of the pictures given beside these or, for all other kinds, of these themselves.
      features: makes what the model is to be aligned with; None makes nothing.
    """

    def __init__(
        self,
        pictures: Pictures,
        resolutions: Iterable[int],
        *,
        autoencoder: Autoencoder,
        text_encoder: T5TextEncoder | None,
        caption_cleaning: str,
        text_dtype: str,
        about: Mapping[str, Any],
        items_per_unit: int = 1024,
        batch_size: int = 16,
        min_side: int = 64,
        max_pixels: int = 2**27,
        max_ratio: float = MAX_RATIO,
        num_threads: int = 8,
        control: str = "none",
        make_control: MakeControl | None = None,
        features: PictureFeatures | None = None,
    ):
        self._control, self._make_control, self._features = control, make_control, features
        self._pictures, self._autoencoder, self._text_encoder = pictures, autoencoder, text_encoder
        self._caption_cleaning, self._text_dtype = caption_cleaning, text_dtype
        self._decode = functools.partial(decode, min_side=min_side, max_pixels=max_pixels, max_ratio=max_ratio)
        self._batch_size, self._num_threads = batch_size, num_threads
        resolutions = sorted(set(resolutions))
        self._buckets = {
            str(resolution) if len(resolutions) > 1 else ONLY: training_buckets(resolution)
            for resolution in resolutions
        }
        self.num_items, self.items_per_unit = len(pictures), items_per_unit
        self.recipe = {
            **about,
            "fingerprint": pictures.fingerprint(),
            "resolutions": resolutions,
            "caption_cleaning": caption_cleaning,
            "text_dtype": text_dtype,
            "items_per_unit": items_per_unit,
            "batch_size": batch_size,
            **self._decode.keywords,
            **({} if make_control is None else {"control": f"{control}: {make_control.probe()}"}),
            **({} if features is None else {"align": features.probe()}),
        }
        self.manifests = {
            name: self._manifest(resolution) for name, resolution in zip(self._buckets, resolutions, strict=True)
        }

    def samples(self, items: range) -> tuple[dict[str, list[Sample]], list[Skipped]]:
        """See `engine.Units`."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            return self.encode(bounded_map(pool, self.prepare, items, ahead=4 * self._num_threads))

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        """See `engine.Units`."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            results = bounded_map(pool, self.prepare, items, ahead=4 * self._num_threads)
            return [result for result in results if isinstance(result, Skipped)]

    def digest(self, items: range) -> str:
        """See `engine.Units`."""
        return self._pictures.digest(items)

    def encode(self, items: Iterable[Prepared | Skipped]) -> tuple[dict[str, list[Sample]], list[Skipped]]:
        """Samples of each set, and what was skipped, of items that `prepare` gave, in their order."""
        kept: list[Prepared] = []
        buckets: list[dict[str, Bucket]] = []
        skipped: list[Skipped] = []
        # By set and bucket; what is encoded, by set and place.
        waiting: dict[tuple[str, Bucket], list[Waiting]] = collections.defaultdict(list)
        latents: dict[tuple[str, int], dict[str, np.ndarray]] = collections.defaultdict(dict)

        def encode_batch(name: str, batch: list[Waiting]) -> None:
            encoded = {"latent": np.stack([item.pixels for item in batch])}
            if self._make_control is not None:
                encoded["control"] = self._make_control(np.stack([item.control for item in batch]))
            for what, pictures in encoded.items():
                means, stds = self._autoencoder.encode(pictures, self._batch_size)
                for item, mean, std in zip(batch, means, stds, strict=True):
                    found = {f"{what}_mean": mean.astype(np.float16), f"{what}_std": std.astype(np.float16)}
                    latents[name, item.place] |= found
            if self._features is not None:
                for item, array in zip(batch, self._features(encoded["latent"]), strict=True):
                    latents[name, item.place]["align"] = array
            batch.clear()

        for result in items:
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            for name, (bucket, pixels) in result.pixels.items():
                batch = waiting[name, bucket]
                batch.append(Waiting(len(kept), pixels, result.control.get(name, pixels)))
                if len(batch) == self._batch_size:
                    encode_batch(name, batch)
            buckets.append({name: bucket for name, (bucket, _) in result.pixels.items()})
            kept.append(
                result._replace(pixels={}, control={})
            )  # Pixels are needed no longer than until their batch is encoded.
        for (name, _), batch in waiting.items():
            if batch:
                encode_batch(name, batch)
        texts = self._encode_captions(kept)
        return {
            name: [
                Sample(
                    key=item.key,
                    texts=texts[place],
                    image_size=item.image_size,
                    bucket=(buckets[place][name].height, buckets[place][name].width),
                    label=item.label,
                    **latents[name, place],
                )
                for place, item in enumerate(kept)
            ]
            for name in self._buckets
        }, skipped

    def prepare(self, index: int) -> Prepared | Skipped:
        """Reads, decodes and crops one item; never raises for what is wrong with it."""
        try:
            picture = self._pictures[index]
        except BadItem as error:
            return Skipped(error.key, error.reason, error.message, index)
        if self._pictures.class_names and picture.label is None:
            return Skipped(picture.key, "label-missing", "no class label, and the others have one", index)
        clean = CLEANING[self._caption_cleaning]
        captions = [(text, weight) for caption, weight in picture.captions if (text := clean(caption))]
        if self._text_encoder is None:
            captions = []
        elif not captions:
            return Skipped(picture.key, "caption-empty", "no caption, or nothing left of it after cleaning", index)
        try:
            image = self._decode(picture.data)
        except BadImage as error:
            return Skipped(picture.key, error.reason, error.message, index)
        control = None
        if self._control == "given":
            if picture.control is None:
                return Skipped(picture.key, "control-missing", "no control picture is given beside it", index)
            try:
                control = self._decode(picture.control)
            except BadImage as error:
                return Skipped(picture.key, error.reason, f"its control picture: {error.message}", index)
            if control.size != image.size:
                sizes = [f"{found.width}×{found.height}" for found in (control, image)]
                message = f"its control picture has {sizes[0]} pixels, it has {sizes[1]}; make it of the same size"
                return Skipped(picture.key, "control-size", message, index)
        label = picture.label if self._pictures.class_names else None
        fitted, controls = {}, {}
        for name, buckets in self._buckets.items():
            bucket = nearest_bucket(buckets, image.height / image.width)
            fitted[name] = bucket, fit(image, bucket)
            if control is not None:
                controls[name] = fit(control, bucket)
        return Prepared(picture.key, (image.height, image.width), fitted, captions, label, controls)

    def _encode_captions(self, kept: list[Prepared]) -> list[tuple[Text, ...]]:
        """The stored texts of each picture."""
        if self._text_encoder is None:
            return [()] * len(kept)
        captions = [caption for item in kept for caption, _ in item.captions]
        features = iter(self._text_encoder.encode_trimmed(captions, self._batch_size))
        return [
            tuple(self._text(caption, weight, next(features)) for caption, weight in item.captions) for item in kept
        ]

    def _text(self, caption: str, weight: float, features: np.ndarray) -> Text:
        if self._text_dtype == "int8":
            return Text(caption, *quantize(features), weight=weight)
        return Text(caption, features.astype(_TEXT_DTYPES[self._text_dtype]), weight=weight)

    def _manifest(self, resolution: int) -> Manifest:
        encoder = self._text_encoder
        return Manifest(
            resolution=resolution,
            latent_channels=self._autoencoder.latent_channels,
            latent_scale=self._autoencoder.latent_scale,
            latent_kind="mean_std",
            downsample=DOWNSAMPLE,
            patch_size=PATCH_SIZE,
            autoencoder="vae",
            text_encoder="t5" if encoder else "none",
            text_dim=encoder.dim if encoder else 0,
            max_text_tokens=encoder.max_tokens if encoder else 0,
            text_dtype=self._text_dtype if encoder else "none",
            caption_cleaning=self._caption_cleaning,
            num_classes=len(self._pictures.class_names),
            control=self._control,
            align=self._features.name if self._features else "none",
            align_dim=self._features.dim if self._features else 0,
        )


def bounded_map(pool: ThreadPoolExecutor, function: Callable[[E], T], items: Iterable[E], ahead: int) -> Iterator[T]:
    """`pool.map` that is never more than `ahead` items ahead of its reader, so that results do not pile up."""
    items = iter(items)
    futures = collections.deque(pool.submit(function, item) for item in itertools.islice(items, ahead))
    while futures:
        yield futures.popleft().result()
        futures.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
