"""Training of the PyTorch peer: the loss of ours and fused AdamW, with clipping and EMA over all tensors at once.

Products in bfloat16 are autocast's, over float32 weights. torch.compile takes the whole of the loss.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pixart_jax.diffusion.schedule import linear_schedule

from .peer import PeerSpec
from .torch_peer import (
    WARM_UP,
    Batch,
    Tensors,
    apply,
    as_tensor,
    build_transformer,
    measure_matrix_rate,
    model_inputs,
    null_text,
    peak_bytes,
    prepare,
    to_latents,
    wait,
)  # fmt: skip
from .turns import Figures, time_calls


@dataclasses.dataclass(frozen=True)
class TrainingSpec:
    """AdamW with clipping and EMA; fields as in `config.optimizer` and `config.train`."""

    learning_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    grad_clip: float
    ema_decay: float
    rematerialise: bool


def diffusion_loss(predict: Callable, tables: Tensors, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor):
    """`pixart_jax.objectives.denoising.diffusion_loss` of images without padding.

    Args:
      predict: (x_t, t) -> [B, C or 2C, H, W].
      tables: of `DiffusionSchedule`, by name.
    """

    def at(name: str) -> torch.Tensor:
        return tables[name][t].reshape(-1, 1, 1, 1)

    def posterior_mean(x0: torch.Tensor) -> torch.Tensor:
        return at("posterior_coef_x0") * x0 + at("posterior_coef_xt") * x_t

    def cdf(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    x_t = at("sqrt_alphas_cumprod") * x0 + at("sqrt_one_minus_alphas_cumprod") * noise
    output = predict(x_t, t).float()
    eps, *v = output.chunk(output.shape[1] // x0.shape[1], dim=1)
    mse = (noise - eps).square().mean()
    if not v:
        return mse
    predicted_x0 = at("sqrt_recip_alphas_cumprod") * x_t - at("sqrt_recipm1_alphas_cumprod") * eps.detach()
    mean, true_mean = posterior_mean(predicted_x0), posterior_mean(x0)
    low, fraction = at("posterior_log_variance"), (v[0] + 1) / 2
    log_variance = fraction * at("log_betas") + (1 - fraction) * low
    kl = (true_mean - mean).square() * torch.exp(-log_variance) + torch.exp(low - log_variance)
    kl = 0.5 * (kl + log_variance - low - 1)
    # At t = 0 the likelihood of x_0 in bins of half-width 1/255.
    inv_scale = torch.exp(-0.5 * log_variance)
    upper, lower = (cdf(inv_scale * (x0 - mean + side / 255)) for side in (1, -1))
    probability = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    nll = -torch.log(probability.clamp_min(1e-12))
    return mse + torch.where((t == 0).reshape(-1, 1, 1, 1), nll, kl).mean() / math.log(2)


class Train:
    """The training step. Between turns it gives its memory back."""

    def __init__(self, compiled: bool, spec: PeerSpec, fields: dict[str, Any], batch: Batch):
        """`fields`: of a TrainingSpec."""
        prepare(spec.device)
        training = TrainingSpec(**fields)
        self._spec, self._training = spec, training
        self._transformer = build_transformer(spec).train()
        if training.rematerialise:
            self._transformer.enable_gradient_checkpointing()
        schedule = linear_schedule()
        self._tables = {
            field.name: as_tensor(getattr(schedule, field.name), spec.device)
            for field in dataclasses.fields(schedule)
            if getattr(schedule, field.name).dtype == np.float32
        }
        self._x0 = as_tensor(to_latents(batch["tokens"], spec), spec.device)
        self._inputs = model_inputs(batch, spec)
        self._null_text = null_text(spec, self._inputs["text"])
        self._params: list[torch.Tensor] = list(self._transformer.parameters())
        self._ema = [parameter.detach().clone() for parameter in self._params]
        self._optimizer = torch.optim.AdamW(
            self._params,
            lr=training.learning_rate,
            betas=(training.b1, training.b2),
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._compiled_loss = torch.compile(self._loss) if compiled else self._loss
        self._parked: list[tuple[torch.UntypedStorage, int]] = []

    def _loss(self, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        drop = self._inputs["text_drop"][:, None, None]
        inputs = self._inputs | {"text": torch.where(drop, self._null_text, self._inputs["text"])}
        half = torch.autocast(self._spec.device, torch.bfloat16, enabled=self._spec.dtype == "bfloat16")

        def predict(x_t, t):
            with half:
                return apply(self._transformer, x_t, t, inputs)

        return diffusion_loss(predict, self._tables, self._x0, t, noise)

    def loss(self, t: np.ndarray, noise: np.ndarray) -> float:
        """Of the first batch's images at these timesteps i[B] and noises, tokens f32[B, N, p·p·C]."""
        latents = as_tensor(to_latents(noise, self._spec), self._spec.device)
        return self._compiled_loss(as_tensor(t, self._spec.device).long(), latents).item()

    def step(self) -> torch.Tensor:
        """One optimizer step at random timesteps and noises; returns the loss."""
        t = torch.randint(len(self._tables["log_betas"]), (len(self._x0),), device=self._x0.device)
        loss = self._compiled_loss(t, torch.randn_like(self._x0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, self._training.grad_clip, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self._params, 1 - self._training.ema_decay)
        return loss

    def turn(self, steps: int) -> Figures:
        self._unpark()
        for _ in range(WARM_UP):
            wait(self.step())
        figures = {"seconds": time_calls(self.step, steps, wait), **peak_bytes(self._spec.device)}
        self.park()
        return figures

    def matrix_rate(self) -> float:
        return measure_matrix_rate(self._spec.dtype, self._spec.device)

    def _state(self) -> list[torch.Tensor]:
        moments = (value for state in self._optimizer.state.values() for value in state.values())
        return [*self._params, *self._ema, *(value for value in moments if value.ndim)]

    def park(self) -> None:
        """Gives the memory back until the next turn, whose weights are others."""
        # The tensors stay, so that compiled code goes on knowing them; what they hold goes.
        self._parked = [(tensor.untyped_storage(), tensor.untyped_storage().nbytes()) for tensor in self._state()]
        for storage, _ in self._parked:
            storage.resize_(0)
        if self._spec.device == "cuda":
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            # glibc keeps what is freed below 32 MiB, which is most of the weights.
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)

    def _unpark(self) -> None:
        if not self._parked:
            return
        for storage, size in self._parked:
            storage.resize_(size)
        self._parked = []
        with torch.no_grad():
            for tensor in self._state():
                tensor.zero_()
            for parameter in self._params:
                parameter.normal_(0, 0.02)
            torch._foreach_lerp_(self._ema, self._params, 1.0)
