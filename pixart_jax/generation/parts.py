"""What a pipeline is made of."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from pixart_jax.adapters.adapter import Params
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.steps import Apply
from pixart_jax.tokens import DOWNSAMPLE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A model, its text encoder and its autoencoder, with what is known of how they draw.

    Attributes:
      name: what was opened, for people.
      model: the denoiser's architecture.
      apply, weights: what is called for a prediction, and what gives its parameters on `mesh`.
      mesh: devices that pictures are spread over; their number rounds batches up.
      position_base, position_scale: see `tokens.grid_positions`.
      latent_scale: what latents were multiplied by in training.
      has_null_text: whether the parameters hold the null caption of guidance; otherwise it is the text encoder's
        features of the empty caption, as in diffusers.
      encode_text: (n captions, told how many are done) -> (text [n, L, text_dim], length i32[n]).
      decode_latents: latents [n, h, w, C] -> their pictures [H, W, 3] in [-1, 1], each as soon as it is decoded.
      encode_pictures: uint8[n, H, W, 3] -> mean and std of their latents, unscaled, f32[n, h, w, C] each.
      caption_cleaning: a key of `captions.CLEANING`; what captions went through in training.
      sampler, num_steps, guidance_scale, guidance: what a request uses unless it says otherwise.
      encoders: the folders of text encoder and autoencoder by kind.
      step: of a run, that of the weights; None of a converted model.
      needs: what adapters want of a request, see `Adaptation`.
    """

    name: str
    model: PixArt
    apply: Apply
    weights: Callable[[], Params]
    mesh: jax.sharding.Mesh
    position_base: int
    position_scale: float
    latent_scale: float
    has_null_text: bool
    encode_text: Callable[[Sequence[str], Callable[[int], None]], tuple[np.ndarray, np.ndarray]]
    decode_latents: Callable[[np.ndarray], Iterator[np.ndarray]]
    encode_pictures: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    caption_cleaning: str
    sampler: str
    num_steps: int = 20
    guidance_scale: float = 4.5
    guidance: str = "cfg"
    encoders: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    step: Callable[[], int | None] = lambda: None
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Pixels along one side of the square that the model was trained at."""
        return self.position_base * self.model.patch_size * DOWNSAMPLE
