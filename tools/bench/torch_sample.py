"""Drawing with the PyTorch peer: a plain loop over diffusers' scheduler, as in its pipelines."""

from __future__ import annotations

import numpy as np
import torch

from pixart_jax.conversion.names.vae import revert_vae

from .peer import PeerSpec, random_array
from .torch_peer import (
    WARM_UP,
    Batch,
    apply,
    as_tensor,
    build_transformer,
    model_inputs,
    null_text,
    peak_bytes,
    prepare,
    to_latents,
    to_tokens,
    wait,
)  # fmt: skip
from .turns import Figures, time_warm


class Sample:
    """Guided DPM-Solver++ steps of diffusers' scheduler, and, where it is asked for, the autoencoder's decoder."""

    def __init__(
        self,
        compiled: bool,
        spec: PeerSpec,
        conditions: Batch,
        guidance_scale: float,
        num_steps: int,
        vae: tuple[dict, dict[str, tuple[int, ...]]] | None,
    ):
        """`vae`: diffusers' config of the autoencoder, and '/'-joined path to shape of our parameters, or None."""
        from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

        prepare(spec.device)
        self._spec, dtype = spec, getattr(torch, spec.dtype)
        self._transformer = build_transformer(spec).to(dtype).eval()
        self._scheduler, self._num_steps = DPMSolverMultistepScheduler(beta_start=1e-4), num_steps
        self._guidance_scale = guidance_scale
        inputs = model_inputs(conditions, spec)
        text = inputs["text"].to(dtype)
        inputs["text"] = torch.cat([null_text(spec, text).expand_as(text), text])
        self._inputs = {name: value if name == "text" else torch.cat([value] * 2) for name, value in inputs.items()}
        self._denoise = torch.compile(apply) if compiled else apply
        self._decode = None
        if vae:
            config, shapes = vae
            autoencoder = AutoencoderKL.from_config(config)
            arrays = revert_vae(shapes, lambda path: random_array(path, shapes[path]))
            autoencoder.load_state_dict({name: torch.tensor(array) for name, array in arrays})
            autoencoder.to(spec.device, dtype).eval()
            decoder = torch.compile(autoencoder.decode) if compiled else autoencoder.decode
            self._decode = lambda latents: decoder(latents / autoencoder.config.scaling_factor, return_dict=False)[0]

    @torch.no_grad()
    def sample(self, noise: np.ndarray) -> np.ndarray:
        """Latents, without the decoder, as tokens f32[B, N, p·p·C]; the noise has the same shape."""
        return to_tokens(self._latents(self._start(noise)), self._spec)

    @torch.no_grad()
    def turn(self, noise: np.ndarray, calls: int) -> Figures:
        x = self._start(noise)

        def draw():
            latents = self._latents(x)
            return self._decode(latents) if self._decode else latents

        return time_warm(draw, calls, wait, WARM_UP) | peak_bytes(self._spec.device)

    def _start(self, noise: np.ndarray) -> torch.Tensor:
        return as_tensor(to_latents(noise, self._spec), self._spec.device).to(getattr(torch, self._spec.dtype))

    def _latents(self, x: torch.Tensor) -> torch.Tensor:
        self._scheduler.set_timesteps(self._num_steps, device=x.device)
        for t in self._scheduler.timesteps:
            both = torch.cat([x, x])
            eps = self._denoise(self._transformer, both, t.expand(len(both)), self._inputs)[:, : x.shape[1]]
            null, cond = eps.chunk(2)
            x = self._scheduler.step(null + self._guidance_scale * (cond - null), t, x, return_dict=False)[0]
        return x
