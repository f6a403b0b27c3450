"""The quickstart's data set as a chapter uses it: glyphs as its font draws them, its encoders, and shards of other
pictures for the same encoders."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from pixart_jax.commands import command
from pixart_jax.data.shards.feature_shards import FeatureShardWriter
from pixart_jax.data.shards.manifest import Manifest, read_manifest
from pixart_jax.data.shards.records import Sample, Text
from pixart_jax.data.word_encoder import WordEncoder
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE, load_autoencoder
from pixart_jax.errors import InputError
from pixart_jax.figures.images import to_uint8
from pixart_jax.files.typed_json import read_fields
from pixart_jax.models.linear_autoencoder import LinearAutoencoder

from ..emoji import Glyph, choose_glyphs, find_font
from ..make_quickstart_data import RECIPE_FILE

# What all shards of this model have in common.
_SHARED = (
    "latent_channels", "latent_scale", "latent_kind", "downsample", "patch_size", "resolution", "autoencoder",
    "text_encoder", "caption_cleaning", "text_dim", "max_text_tokens", "text_dtype",
)  # fmt: skip
_PER_SHARD = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Glyphs:
    """What `tools.make_quickstart_data` made.

    Attributes:
      folder: of the data set.
      font: its file; None looks in the usual places.
      manifest, autoencoder, words: the data set's.
      captions: of its glyphs, in the order of `pixels`.
    """

    folder: pathlib.Path
    font: str | None
    manifest: Manifest
    autoencoder: LinearAutoencoder
    words: WordEncoder
    captions: Sequence[str]

    @classmethod
    def open(cls, folder: pathlib.Path, font: str | None) -> Glyphs:
        """Raises InputError where there is no such data set, or not the font that it was drawn with."""
        cure = f"{command('make_quickstart_data')} --out {folder} makes it"
        if not (folder / RECIPE_FILE).is_file():
            raise InputError(f"{folder} holds no data of the quickstart: {RECIPE_FILE} is missing; {cure}")
        fields = read_fields(folder / RECIPE_FILE, cure)
        manifest = read_manifest(folder)
        try:
            captions = [glyph["caption"] for glyph in fields["glyphs"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / RECIPE_FILE}: its glyphs have no captions; {cure}") from error
        glyphs = cls(folder, font, manifest, load_autoencoder(folder, manifest), WordEncoder.load(folder), captions)
        if [glyph.caption for glyph in glyphs.known] != list(captions):
            raise InputError(f"{folder} was drawn with another font; name it (--font), or delete the data: {cure}")
        return glyphs

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return self.manifest.resolution

    @functools.cached_property
    def known(self) -> list[Glyph]:
        """Those that the model was trained on."""
        return choose_glyphs(find_font(self.font)[0], len(self.captions), self.size)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8[n, size, size, 3] of `captions`, as the font draws them."""
        return np.stack([glyph.pixels for glyph in self.known])

    def named(self, indices: np.ndarray) -> list[str]:
        """The captions of i[n]."""
        return [self.captions[int(i)] for i in indices]

    def unknown(self, count: int) -> list[Glyph]:
        """Glyphs of the font that the data set was made without; raises InputError where it has no more so many."""
        more = choose_glyphs(find_font(self.font)[0], len(self.captions) + count, self.size)
        return [glyph for glyph in more if glyph.caption not in set(self.captions)]

    def kept(self, pictures: np.ndarray) -> np.ndarray:
        """What the autoencoder keeps of pictures uint8[n, H, W, 3], likewise."""
        return to_uint8(self.autoencoder.decode(self._latents(pictures)))

    def write(
        self,
        folder: pathlib.Path,
        pictures: np.ndarray,
        captions: Sequence[str],
        *,
        words: WordEncoder | None = None,
        control: np.ndarray | None = None,
    ) -> pathlib.Path:
        """Feature shards of pictures; returns the folder. What is there already stays as it is.

        Args:
          pictures: uint8[n, H, W, 3].
          captions: of them.
          words: what encodes them in place of the data set's.
          control: f32[n, H, W, 3] in [0, 255], the edges of each by Canny.
        """
        if folder.exists():
            return folder
        words = words or self.words
        text, length = words.encode(captions)
        latents, size = self._latents(pictures), (pictures.shape[1], pictures.shape[2])
        beside = None if control is None else self._latents(control)
        fields = {name: getattr(self.manifest, name) for name in _SHARED}
        kind = "none" if beside is None else "canny"
        with FeatureShardWriter(folder, **fields, control=kind, records_per_shard=_PER_SHARD) as writer:
            for i, caption in enumerate(captions):
                writer.write(
                    Sample(
                        key=f"{i:06d}",
                        image_size=size,
                        bucket=size,
                        latent_mean=latents[i],
                        latent_std=None,
                        texts=(Text(caption, text[i, : length[i]]),),
                        control_mean=None if beside is None else beside[i],
                    )
                )
            self.autoencoder.save(writer.path / LINEAR_AUTOENCODER_FILE)
            words.save(writer.path)
        return folder

    def _latents(self, pictures: np.ndarray) -> np.ndarray:
        return self.autoencoder.encode(pictures.astype(np.float32) / 127.5 - 1.0)
