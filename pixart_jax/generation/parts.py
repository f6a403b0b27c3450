"""What a pipeline is made of."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from pixart_jax.encoding.pretrained import LazyParams
from pixart_jax.figures.images import to_uint8
from pixart_jax.models.path_drop import Stretch
from pixart_jax.models.pixart import PixArt
from pixart_jax.samplers.predictions import EPS, Target
from pixart_jax.samplers.steps import Apply
from pixart_jax.tokens import DOWNSAMPLE


def as_it_is(apply: Apply) -> Apply:
    """Where nothing is to be put in a model's place."""
    return apply


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A model, its text encoder and its autoencoder, with what is known of how they draw.

    Attributes:
      name: what was opened, for people.
      model: the denoiser's architecture.
      weights: the parameters on `mesh`.
      over: what adapters make of a callable of the model's parameters, `params.apply_of(model)` first of all.
      wrap: takes what is called for a prediction, and gives what is called in its place.
      text_once: keys and values of the text are computed once per picture, where no adapter needs more of it.
      mesh: devices that pictures, and the tokens of each, are spread over, see `placing`.
      position_base, position_scale: see `tokens.grid_positions`.
      latent_scale: what latents were multiplied by in training.
      has_null_text: whether the parameters hold the null caption of guidance; otherwise it is the text encoder's
        features of the empty caption, as in diffusers.
      encode_text: (n captions, told how many are done) -> (text [n, L, text_dim], length i32[n]).
      decode_latents: latents [n, h, w, C] -> their pictures [H, W, 3] in [-1, 1], each as soon as it is decoded.
      draw_latents: the same as uint8; None rounds those.
      encode_pictures: uint8[n, H, W, 3] -> mean and std of their latents, unscaled, f32[n, h, w, C] each.
      caption_cleaning: a key of `captions.CLEANING`; what captions went through in training.
      target: what the model predicts.
      sampler, num_steps, guidance_scale, guidance: what a request uses unless it says otherwise.
      encoders: the folders of text encoder and autoencoder by kind.
      step: of a run, that of the weights; None of a converted model.
      needs: what adapters want of a request, see `Adaptation`.
      path_drop: the blocks that the model was trained to do without, for guidance by that; None: it was not.
      whole: why it cannot be in int8, see `Adaptation`; "" where it can.
      in_int8: see `denoiser.eight_bit_parts`.
    """

    name: str
    model: PixArt
    weights: LazyParams
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
    target: Target = EPS
    num_steps: int = 20
    guidance_scale: float = 4.5
    guidance: str = "cfg"
    over: Callable[[Apply], Apply] = as_it_is
    wrap: Callable[[Apply], Apply] = as_it_is
    text_once: bool = True
    draw_latents: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None
    encoders: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    step: Callable[[], int | None] = lambda: None
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path_drop: Stretch | None = None
    whole: str = ""
    in_int8: bool = False

    def pictures_of(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """Pictures uint8[H, W, 3] of latents [n, h, w, C], each as soon as it is decoded."""
        return map(to_uint8, self.decode_latents(latents)) if self.draw_latents is None else self.draw_latents(latents)

    @property
    def resolution(self) -> int:
        """Pixels along one side of the square that the model was trained at."""
        return self.position_base * self.model.patch_size * DOWNSAMPLE
