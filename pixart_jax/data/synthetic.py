"""A data set of random numbers that is on no disk: to try a config, a machine or a mesh before the data are ready."""

from __future__ import annotations

import dataclasses
import functools

import ml_dtypes
import numpy as np

from pixart_jax.data.buckets import RESOLUTIONS, Bucket, training_buckets
from pixart_jax.data.examples import BatchSpec
from pixart_jax.data.shards.manifest import Manifest, bucket_name
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.models.linear_autoencoder import LinearAutoencoder
from pixart_jax.tokens import DOWNSAMPLE

NUM_SAMPLES = 10_000
# Prime, so that over the set every bucket meets every caption.
_NUM_TEXTS = 61
_WORDS = "a the red green blue small large old round bright cat dog house tree boat hill in on under beside"


@dataclasses.dataclass(frozen=True)
class SyntheticSamples:
    """`NUM_SAMPLES` samples of noise in every aspect-ratio bucket of a resolution, made when they are asked for.

    Latents are of unit variance. Captions are random words, of every length up to the batch's limit, with the features
    of a word encoder of its width; for class-conditional batches labels take their place. Reading a sample costs
    nothing: latents are views of one array of noise, texts are of a few dozen, made beforehand. It pickles as its
    arguments.

    Args:
      spec: the batches it is for.
      resolution: pixels along the side of the square; one without a table of buckets has the square alone. Buckets
        that the model's key/value compression does not divide are left out.
    """

    spec: BatchSpec
    resolution: int

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < NUM_SAMPLES:
            raise IndexError(f"sample {index} of {NUM_SAMPLES} synthetic ones")
        size = self._sizes[index % len(self._sizes)]
        rows, columns = (side // DOWNSAMPLE for side in size)
        count = rows * columns * self.spec.latent_channels
        # Cheap hashes: neighbours must not start from overlapping noise, nor a picture where its control does.
        start, other = (index * factor % (len(self._noise) - count + 1) for factor in (2_654_435_761, 2_246_822_519))
        return Sample(
            key=f"synthetic-{index}",
            image_size=size,
            bucket=size,
            latent_mean=self._noise[start : start + count].reshape(rows, columns, -1),
            latent_std=None,
            control_mean=self._noise[other : other + count].reshape(rows, columns, -1) if self.spec.control else None,
            align=self._features if self.spec.align_dim else None,
            texts=() if self.spec.num_classes else (self._texts[index % _NUM_TEXTS],),
            label=index % self.spec.num_classes if self.spec.num_classes else None,
        )

    @functools.cached_property
    def manifest(self) -> Manifest:
        """What the samples have in common; it has no shards."""
        counts = np.bincount(self.read_buckets(), minlength=len(self._sizes)).tolist()
        has_text = not self.spec.num_classes
        return Manifest(
            latent_channels=self.spec.latent_channels,
            latent_scale=1.0,
            latent_kind="plain",
            downsample=DOWNSAMPLE,
            patch_size=self.spec.patch_size,
            resolution=self.resolution,
            autoencoder="linear",
            text_encoder="words" if has_text else "none",
            caption_cleaning="none",
            text_dim=self.spec.text_dim if has_text else 0,
            max_text_tokens=self.spec.max_text_tokens if has_text else 0,
            text_dtype="bfloat16" if has_text else "none",
            num_classes=self.spec.num_classes,
            control="given" if self.spec.control else "none",
            align="synthetic" if self.spec.align_dim else "none",
            align_dim=self.spec.align_dim,
            num_samples=NUM_SAMPLES,
            bucket_histogram=dict(zip(map(bucket_name, self._sizes), counts, strict=True)),
        )

    def read_buckets(self) -> np.ndarray:
        """Integers [NUM_SAMPLES]: places of the samples' buckets in `list(manifest.buckets)`."""
        return np.arange(NUM_SAMPLES) % len(self._sizes)

    @functools.cached_property
    def text_encoder(self) -> WordEncoder:
        """That of the captions, for text-conditional batches."""
        return WordEncoder.train([_WORDS], self.spec.text_dim, self.spec.max_text_tokens)

    @functools.cached_property
    def autoencoder(self) -> LinearAutoencoder:
        """Decodes noise to noise: pixels are a random rotation of the latents."""
        size = DOWNSAMPLE**2 * 3
        basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, self.spec.latent_channels)))
        return LinearAutoencoder(
            mean=np.zeros(size, np.float32),
            basis=np.ascontiguousarray(basis, np.float32),
            # Unit variance of a latent becomes about a half of a pixel's whole range.
            channel_scale=np.full(self.spec.latent_channels, 0.5 * DOWNSAMPLE, np.float32),
            latent_scale=1.0,
            block=DOWNSAMPLE,
        )

    @functools.cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        """Of the buckets, in the manifest's order."""
        square = Bucket(1.0, self.resolution, self.resolution)
        buckets = training_buckets(self.resolution) if self.resolution in RESOLUTIONS else (square,)
        unit = DOWNSAMPLE * self.spec.patch_size * self.spec.block_ratio
        return sorted((b.height, b.width) for b in buckets if b.height % unit == 0 and b.width % unit == 0)

    @functools.cached_property
    def _noise(self) -> np.ndarray:
        size = max(height * width for height, width in self._sizes) // DOWNSAMPLE**2 * self.spec.latent_channels
        return np.random.default_rng(1).standard_normal(2 * size, np.float32).astype(np.float16)

    @functools.cached_property
    def _features(self) -> np.ndarray:
        return np.random.default_rng(3).standard_normal((4, 4, self.spec.align_dim), np.float32).astype(np.float16)

    @functools.cached_property
    def _texts(self) -> list[Text]:
        rng = np.random.default_rng(2)
        # One token is the end's.
        lengths = np.linspace(1, self.spec.max_text_tokens, _NUM_TEXTS).astype(int) - 1
        captions = [" ".join(rng.choice(_WORDS.split(), length)) for length in lengths]
        texts = []
        for caption in captions:  # One by one: together they are as large as they ever get, in float32 and padded.
            features, length = self.text_encoder.encode([caption])
            texts.append(Text(caption, features[0, : length[0]].astype(ml_dtypes.bfloat16)))
        return texts

    def __getstate__(self) -> dict:
        return {"spec": self.spec, "resolution": self.resolution}
