"""Units of features that PixArt's own tools extracted: stored anew, not encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes  # noqa: F401  makes numpy know the name bfloat16
import numpy as np

from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.data.buckets import RESOLUTIONS, training_buckets
from pixart_jax.data.captions import CLEANING
from pixart_jax.data.pictures import BadItem
from pixart_jax.data.reference_features import ReferenceFeatures, ReferenceFeatureSource
from pixart_jax.data.shards.manifest import Manifest, bucket_name
from pixart_jax.data.shards.records import Sample, Text, quantize
from pixart_jax.encoding.engine import ONLY
from pixart_jax.encoding.pictures import PATCH_SIZE, bounded_map
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Skipped
from pixart_jax.tokens import DOWNSAMPLE

# Records, spread over the list, that are read before work starts, until so many of them were whole.
_PROBED, _WHOLE = 200, 8


class ReferenceUnits:
    """Units of a list's features. The latents become float16, the text `text_dtype`, without its padding.

    What the source cannot read is skipped with the source's reason, and so is
      "wrong-bucket": latents of a size that is no bucket of the resolution;
      "too-many-tokens": text longer than any of the family;
      "not-finite": also what only becomes so in 16 bits.

    Args:
      source: see `open_reference_features`.
      resolution: pixels along the side of the buckets' square.
      family: a key of FAMILIES: whose latent scale, caption cleaning and length of captions hold. No file tells it.
      latent_channels, text_dim: as the source was opened.
      text_dtype: what text is stored as: "bfloat16", "float16", "float32", or "int8" with a scale per token.
      about: JSON-able, for the recipe: where the list and the folders are.
      items_per_unit: of the engine.
      num_threads: that read.

    Raises:
      InputError: the first features that can be read are of another resolution, family or text encoder, or none of
        their records has a caption.
    """

    def __init__(
        self,
        source: ReferenceFeatureSource,
        resolution: int,
        *,
        family: str,
        text_dtype: str,
        about: Mapping[str, Any],
        latent_channels: int = 4,
        text_dim: int = 4096,
        items_per_unit: int = 1024,
        num_threads: int = 8,
    ):
        self._source, self._resolution, self._family = source, resolution, family
        self._text_dtype, self._num_threads = text_dtype, num_threads
        self._buckets = _sizes(resolution)
        self._max_text_tokens = FAMILIES[family]["max_text_tokens"]
        cleaning = FAMILIES[family]["caption_cleaning"]
        self._clean = CLEANING[cleaning]
        self.num_items, self.items_per_unit = len(source), items_per_unit
        self.recipe = {
            **about,
            "fingerprint": source.fingerprint(),
            "family": family,
            "resolution": resolution,
            "text_dtype": text_dtype,
            "items_per_unit": items_per_unit,
        }
        self.manifests = {
            ONLY: Manifest(
                resolution=resolution,
                latent_channels=latent_channels,
                latent_scale=FAMILIES[family]["latent_scale"],
                latent_kind="mean_std",
                downsample=DOWNSAMPLE,
                patch_size=PATCH_SIZE,
                autoencoder="vae",
                text_encoder="t5",
                text_dim=text_dim,
                max_text_tokens=self._max_text_tokens,
                text_dtype=text_dtype,
                caption_cleaning=cleaning,
            )
        }
        self._look_at_some()

    def samples(self, items: range) -> tuple[dict[str, list[Sample]], list[Skipped]]:
        """See `engine.Units`."""
        kept: list[Sample] = []
        skipped: list[Skipped] = []
        with ThreadPoolExecutor(self._num_threads) as pool:
            for result in bounded_map(pool, self._sample, items, ahead=4 * self._num_threads):
                if isinstance(result, Skipped):
                    skipped.append(result)
                else:
                    kept.append(result)
        return {ONLY: kept}, skipped

    def still_skipped(self, items: Sequence[int]) -> list[Skipped]:
        """See `engine.Units`."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            results = bounded_map(pool, self._sample, items, ahead=4 * self._num_threads)
            return [result for result in results if isinstance(result, Skipped)]

    def digest(self, items: range) -> str:
        """See `engine.Units`."""
        return self._source.fingerprint()

    def _sample(self, index: int) -> Sample | Skipped:
        try:
            found = self._source[index]
            if problem := self._bucket_problem(found):
                raise BadItem(found.key, "wrong-bucket", problem)
            if problem := self._length_problem(found):
                raise BadItem(found.key, "too-many-tokens", problem)
            # Cleaned, because that is what T5 read, and what is stored with features that are encoded here.
            text = self._text(self._clean(found.caption), found)
            return Sample(
                key=found.key,
                texts=(text,),
                image_size=found.image_size,
                bucket=found.bucket,
                latent_mean=_narrowed(found.latent_mean, "float16", found.key, "latent mean"),
                latent_std=_narrowed(found.latent_std, "float16", found.key, "latent deviation"),
            )
        except BadItem as error:
            return Skipped(error.key, error.reason, str(error), index)

    def _text(self, caption: str, found: ReferenceFeatures) -> Text:
        if self._text_dtype == "int8":
            return Text(caption, *quantize(found.text))
        return Text(caption, _narrowed(found.text, self._text_dtype, found.key, "text"))

    def _bucket_problem(self, found: ReferenceFeatures) -> str | None:
        if found.bucket in self._buckets:
            return None
        others = [str(other) for other in RESOLUTIONS if found.bucket in _sizes(other)]
        cure = f"; --resolution {' or '.join(others)} has it" if others else ""
        return f"{bucket_name(found.bucket)} pixels are no bucket of resolution {self._resolution}{cure}"

    def _length_problem(self, found: ReferenceFeatures) -> str | None:
        if len(found.text) <= self._max_text_tokens:
            return None
        fitting = [name for name, family in FAMILIES.items() if family["max_text_tokens"] >= len(found.text)]
        cure = f"; --family {' or '.join(fitting)} has room for it" if fitting else ""
        return f"{len(found.text)} tokens, and captions of {self._family} have at most {self._max_text_tokens}{cure}"

    def _look_at_some(self) -> None:
        """What is wrong with all of a tree shows in its first features, and not after hours."""
        unreadable, bad_buckets, captions, whole = None, [], 0, 0
        for index in range(0, self.num_items, -(-self.num_items // _PROBED)):
            try:
                found = self._source[index]
            except BadItem as error:
                if error.reason == "wrong-features" and unreadable is None:
                    unreadable = error
                continue
            # No tool writes more tokens than its family has: one such text tells.
            if problem := self._length_problem(found):
                raise InputError(f"{self._source!r}: {found.key}: {problem}")
            if problem := self._bucket_problem(found):
                bad_buckets.append(f"{found.key}: {problem}")
            captions += bool(found.caption.strip())
            whole += 1
            if whole == _WHOLE:
                break
        if not whole and unreadable is not None:
            raise InputError(f"{self._source!r}: none of the features looked at can be used; {unreadable}")
        if whole and len(bad_buckets) == whole:
            raise InputError(f"{self._source!r}: none of the latents looked at fits; {bad_buckets[0]}")
        if whole and not captions:
            raise InputError(
                f"{self._source!r}: none of the records looked at has a caption in the field that the text is said "
                "to be of; name another (--caption-field)"
            )


def _sizes(resolution: int) -> frozenset[tuple[int, int]]:
    return frozenset((bucket.height, bucket.width) for bucket in training_buckets(resolution))


def _narrowed(array: np.ndarray, dtype: str, key: str, what: str) -> np.ndarray:
    """Finite numbers as `dtype`, unless they are beyond its range."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow).all():
        raise BadItem(key, "not-finite", f"{what}: up to {np.abs(array).max():.3g}, which {dtype} cannot hold")
    return narrow
