"""The PyTorch peer: diffusers' PixArtTransformer2DModel with weights of ours, and its forward pass.

Everything as PyTorch does it best: attention by SDPA (diffusers' default), weights in bfloat16 for inference, as many
threads as there are cores, denormals flushed to zero as XLA does.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
import torch

from pixart_jax.conversion.names.diffusers import NULL_TEXT, revert_diffusers
from pixart_jax.tokens import patchify, unpatchify

from .peer import PeerSpec, random_array
from .rates import calibrated_rate, matrix_size
from .turns import Figures, time_warm

# Calls before those that are timed: the first compiles, the second may compile once more and allocates.
WARM_UP = 2

Batch = Mapping[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def prepare(device: str) -> None:
    """Settings of the process under which PyTorch is at its best."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU here, JAX does: install a torch with CUDA")
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def wait(_=None) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(device: str) -> Figures:
    if device == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_bytes_of": "device"}
    # Not getrusage's, which begins at that of the process that started this one.
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return {"peak_bytes": int(found[1]) * 1024 if found else None, "peak_bytes_of": "process"}


def measure_matrix_rate(dtype: str, device: str) -> float:
    """As `rates.matrix_rate`, by PyTorch."""
    size = matrix_size("gpu" if device == "cuda" else "cpu")
    x, y = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return calibrated_rate(2 * size**3, lambda: x @ y, wait)


def as_tensor(array: np.ndarray, device: str) -> torch.Tensor:
    """A copy on the device; bfloat16, which numpy has from ml_dtypes, stays what it is."""
    if array.dtype.name == "bfloat16":
        return as_tensor(array.astype(np.float32), device).bfloat16()
    return torch.tensor(array, device=device)


def build_transformer(spec: PeerSpec) -> torch.nn.Module:
    """With the weights of `random_params`, float32, on the device."""
    from diffusers import PixArtTransformer2DModel

    with torch.device(spec.device):
        transformer = PixArtTransformer2DModel.from_config(spec.config)

    def read(path: str) -> np.ndarray:
        return random_array(path, spec.shapes[path])

    parameters = transformer.state_dict()
    with torch.no_grad():
        for name, array in revert_diffusers(spec.shapes, read, spec.segments, spec.patch_size):
            parameters.pop(name).copy_(torch.from_numpy(array))
    if left := [name for name in parameters if not name.endswith("pos_embed")]:
        raise RuntimeError(f"diffusers' transformer has parameters that ours lacks: {', '.join(left)}")
    return transformer


def to_latents(tokens: np.ndarray, spec: PeerSpec) -> np.ndarray:
    """Tokens [B, N, p·p·C] of the square as PyTorch's latents [B, C, H, W]."""
    return unpatchify(tokens, (spec.side, spec.side), spec.patch_size).transpose(0, 3, 1, 2)


def to_tokens(latents: torch.Tensor, spec: PeerSpec) -> np.ndarray:
    """The way back, as f32."""
    return patchify(latents.detach().float().cpu().numpy().transpose(0, 2, 3, 1), spec.patch_size)


def model_inputs(batch: Batch, spec: PeerSpec) -> Tensors:
    """The conditions of a batch of ours that diffusers' transformer takes, and `text_drop`."""
    tensors = {
        name: as_tensor(batch[name], spec.device) for name in ("text", "text_drop", "image_size", "aspect_ratio")
    }
    length = as_tensor(batch["text_length"], spec.device)
    mask = torch.arange(batch["text"].shape[1], device=spec.device) < length[:, None]
    return tensors | {"text_mask": mask}


def null_text(spec: PeerSpec, text: torch.Tensor) -> torch.Tensor:
    """The null caption [L, text_dim], which diffusers' model does not keep, like the texts [B, L, text_dim]."""
    return as_tensor(random_array(NULL_TEXT, spec.shapes[NULL_TEXT])[: text.shape[1]], spec.device).to(text.dtype)


def apply(transformer: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, inputs: Tensors) -> torch.Tensor:
    """Its output [B, C or 2C, H, W]."""
    micro: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if transformer.config.use_additional_conditions:
        micro = {"resolution": inputs["image_size"], "aspect_ratio": inputs["aspect_ratio"]}
    return transformer(
        x,
        encoder_hidden_states=inputs["text"],
        timestep=t,
        added_cond_kwargs=micro,
        encoder_attention_mask=inputs["text_mask"],
        return_dict=False,
    )[0]


class Forward:
    """The transformer's forward pass."""

    def __init__(self, compiled: bool, spec: PeerSpec, batch: Batch, t: np.ndarray):
        prepare(spec.device)
        self._spec = spec
        self._transformer = build_transformer(spec).to(getattr(torch, spec.dtype)).eval()
        self._x = as_tensor(to_latents(batch["tokens"], spec), spec.device).to(getattr(torch, spec.dtype))
        inputs, timesteps = model_inputs(batch, spec), as_tensor(t, spec.device)
        inputs["text"] = inputs["text"].to(getattr(torch, spec.dtype))
        run = torch.compile(apply) if compiled else apply
        self._call = lambda: run(self._transformer, self._x, timesteps, inputs)

    @torch.no_grad()
    def output(self) -> np.ndarray:
        """Predicted noise as tokens f32[B, N, p·p·C]."""
        return to_tokens(self._call()[:, : self._x.shape[1]], self._spec)

    @torch.no_grad()
    def turn(self, calls: int) -> Figures:
        return time_warm(self._call, calls, wait, WARM_UP) | peak_bytes(self._spec.device)

    def matrix_rate(self) -> float:
        return measure_matrix_rate(self._spec.dtype, self._spec.device)
