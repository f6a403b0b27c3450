"""PyTorch's own attention and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import os

import torch

from .torch_peer import WARM_UP, prepare, wait
from .turns import Figures, time_calls, time_warm


class Attention:
    """torch.nn.functional.scaled_dot_product_attention of random numbers."""

    def __init__(self, compiled: bool, device: str, dtype: str):
        prepare(device)
        self._device, self._dtype = device, getattr(torch, dtype)
        attend = torch.nn.functional.scaled_dot_product_attention
        self._attend = torch.compile(attend) if compiled else attend

    def turn(
        self, batch: int, queries: int, keys: int, heads: int, head_dim: int, backward: bool, calls: int
    ) -> Figures:
        """Seconds of the call, or of it and the gradients of q, k and v."""
        q, k, v = (
            torch.randn(batch, length, heads, head_dim, device=self._device, dtype=self._dtype)
            .transpose(1, 2)
            .requires_grad_(backward)
            for length in (queries, keys, keys)
        )
        d_out = torch.randn_like(q)

        def call():
            out = self._attend(q, k, v)
            return torch.autograd.grad(out, (q, k, v), d_out) if backward else out

        with contextlib.nullcontext() if backward else torch.no_grad():
            return time_warm(call, calls, wait, WARM_UP)


class Save:
    """torch.save of a training state: parameters, EMA and Adam's moments."""

    def __init__(self, compiled: bool, device: str, shapes: list[tuple[int, ...]]):
        prepare(device)
        self._device, self._shapes = device, shapes

    def turn(self, path: str) -> Figures:
        """Seconds to save and to load again, on the device in the end."""
        state: dict[str, list[torch.Tensor]] | None = {
            name: [torch.randn(shape, device=self._device) for shape in self._shapes]
            for name in ("params", "ema", "exp_avg", "exp_avg_sq")
        }
        wait()
        seconds = time_calls(lambda: torch.save(state, path), 1, wait)
        state = None
        load = functools.partial(torch.load, path, map_location=self._device, weights_only=True)
        restore = time_calls(load, 1, wait)
        figures = {"seconds": seconds, "restore_seconds": restore, "bytes": os.path.getsize(path)}
        os.remove(path)
        return figures
