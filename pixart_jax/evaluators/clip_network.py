"""CLIP at work: pictures and captions to features of length 1, on all devices of this process."""

from __future__ import annotations

import concurrent.futures
import pathlib
import threading
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image

from pixart_jax.conversion.clip import LoadedClip, load_clip
from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_preprocessing import read_clip_preprocessing
from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork, OnDevices
from pixart_jax.models.clip import LEGACY_EOS, Clip, TextSizes

# (hidden size, layers) of the tower for pictures to what people call it.
_LETTERS = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"}
# The sizes that such networks usually have, which their names leave out.
_USUAL_SIZE = 224


class ClipNetwork:
    """A CLIP with its weights, its tokenizer and its way to prepare pictures.

    Attributes:
      clip: what was loaded.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        batch_size: int = 32,
        num_threads: int = 1,
        preprocessing: str = "transformers",
    ):
        """Opens a CLIP and puts it on the devices.

        Args:
          path: see `conversion.clip.load_clip`.
          batch_size: of pictures and of captions; rounded up to a multiple of the devices.
          num_threads: that prepare pictures.
          preprocessing: a name of `clip_preprocessing`.

        Raises:
          InputError: it is no CLIP, or damaged.
        """
        self.clip = load_clip(path)
        self._num_threads = num_threads
        model = self.clip.model
        pictures = picture_network(self.clip, preprocessing) if model.vision else None
        captions = caption_network(self.clip) if model.text and self.clip.tokenizer else None
        self._pictures = OnDevices(pictures, batch_size) if pictures else None
        self._captions = OnDevices(captions, batch_size) if captions else None

    def image_features(self, pictures: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """Features of pictures.

        Args:
          pictures: of any sizes, each of Pillow's or uint8[H, W, 3].

        Returns:
          f32[N, projection_dim], each row of length 1.

        Raises:
          InputError: there is no tower for pictures, or one of them is no picture.
        """
        if self._pictures is None:
            raise InputError(f"{self.clip.path} holds no tower for pictures; name the folder of a whole CLIP")
        prepare = self._pictures.network.prepare
        found = [np.zeros((0, self.clip.model.projection_dim), np.float32)]
        with concurrent.futures.ThreadPoolExecutor(self._num_threads) as pool:
            for begin in range(0, len(pictures), self._pictures.batch_size):
                some = pictures[begin : begin + self._pictures.batch_size]
                prepared = list(pool.map(lambda picture: prepare(_pixels(picture)), some))
                found.append(self._pictures(prepared)[FEATURES])
        return np.concatenate(found)

    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Features of captions, which are cut to what the network reads, their end-of-text token kept.

        Returns:
          f32[N, projection_dim], each row of length 1.

        Raises:
          InputError: there is no tower or no tokenizer for captions.
        """
        if self._captions is None:
            raise InputError(f"{self.clip.path} holds no tokenizer and tower for captions; name a whole CLIP's folder")
        return self._captions([self._captions.network.prepare(caption) for caption in captions])[FEATURES]


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture


def describe_clip(model: Clip) -> str:
    """What people call a CLIP of these sizes, e.g. "CLIP ViT-L/14@336"."""
    sizes = model.vision
    if sizes is None:
        return "CLIP's tower for captions"
    letter = _LETTERS.get((sizes.hidden_size, sizes.num_hidden_layers))
    size = "" if sizes.image_size == _USUAL_SIZE else f"@{sizes.image_size}"
    return f"CLIP ViT-{letter or f'{sizes.hidden_size}x{sizes.num_hidden_layers}'}/{sizes.patch_size}{size}"


def picture_network(clip: LoadedClip, preprocessing: str) -> FeatureNetwork:
    """The tower for pictures.

    Args:
      preprocessing: a name of `clip_preprocessing`.

    Raises:
      InputError: there is none, or its preprocessor_config.json cannot be followed.
    """
    if clip.model.vision is None:
        raise InputError(f"{clip.path} holds no tower for pictures; name the folder of a whole CLIP")
    size = clip.model.vision.image_size
    model, width = Clip(clip.model.vision, None, clip.model.projection_dim), clip.model.projection_dim

    def apply(params, pictures):
        return {FEATURES: _unit(model.apply({"params": params}, pictures, method="image_features"))}

    return FeatureNetwork(
        name=describe_clip(clip.model),
        sha256=clip.digest("vision_model"),
        published=None,
        preprocessing=preprocessing,
        input_shape=(size, size, 3),
        outputs={FEATURES: width},
        prepare=read_clip_preprocessing(clip.path, size, preprocessing),
        apply=apply,
        params={"vision_model": clip.params["vision_model"]},
    )


def caption_network(clip: LoadedClip) -> FeatureNetwork:
    """The tower for captions, which `prepare` makes i32[L] token ids of.

    Raises:
      InputError: there is none, or no tokenizer that goes with it.
    """
    if clip.model.text is None or clip.tokenizer is None:
        lacks = "tower" if clip.model.text is None else "tokenizer"
        raise InputError(f"{clip.path} holds no {lacks} for captions; name the folder of a whole CLIP")
    sizes = clip.model.text
    model, width = Clip(None, sizes, clip.model.projection_dim), clip.model.projection_dim

    def apply(params, token_ids):
        return {FEATURES: _unit(model.apply({"params": params}, token_ids, method="text_features"))}

    return FeatureNetwork(
        name=describe_clip(clip.model),
        sha256=clip.digest("text_model"),
        published=None,
        preprocessing=f"cut to {sizes.max_position_embeddings} tokens",
        input_shape=(sizes.max_position_embeddings,),
        outputs={FEATURES: width},
        prepare=_Tokens(clip.tokenizer, sizes),
        apply=apply,
        params={"text_model": clip.params["text_model"]},
    )


def _unit(features):
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


class _Tokens:
    """Captions to token ids i32[max_position_embeddings]; called from several threads at once."""

    def __init__(self, folder: pathlib.Path, sizes: TextSizes):
        """Raises InputError if there is no tokenizer of CLIP's in the folder."""
        # Half a second, which only those who have captions should wait.
        from transformers import CLIPTokenizer

        self._folder, self._sizes = folder, sizes
        # The library's tokenizers take their settings with each call, and break where two threads set them.
        self._lock = threading.Lock()
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # It raises everything from ImportError to bare Exception for a malformed file.
            raise InputError(f"{folder} is no tokenizer of CLIP's, or a damaged one: {str(error)[:300]}") from error

    def __call__(self, caption: str) -> np.ndarray:
        """Raises InputError unless the network knows all of the ids and finds the end among them."""
        sizes = self._sizes
        with self._lock:
            found = self._tokenizer(
                caption, padding="max_length", truncation=True, max_length=sizes.max_position_embeddings
            )
        ids = np.array(found["input_ids"], np.int32)
        legacy = sizes.eos_token_id == LEGACY_EOS
        end = self._tokenizer.eos_token_id if legacy else sizes.eos_token_id
        if ids.max() >= sizes.vocab_size or end not in ids or (legacy and ids.max() != end):
            raise InputError(
                f"{self._folder}: the tokenizer is another network's: it makes ids up to {ids.max()} of "
                f"{caption[:80]!r}, where the network knows {sizes.vocab_size} and looks for the end token {end}; take "
                "both from one folder"
            )
        return ids
