"""The denoiser's forward pass, beside that of diffusers' transformer with the same weights.

On one device. Both compute the same first, and the largest difference is one of the figures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.config import ConfigDict, build_model, check_attention, position_base
from pixart_jax.models.params import parameter_shapes
from pixart_jax.models.pixart import PixArt
from pixart_jax.training.flops import forward_flops

from .options import make_parser, parse_with_config
from .peer import missing_peer, open_peers, peer_spec, random_params
from .rates import peak_bytes
from .train import flop_rates, synthetic_batch
from .turns import Figures, compare, time_warm


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of the command line's config."""
    args, config, about = parse_with_config(make_parser(__name__, __doc__, calls=10), argv)
    yield {**about, **bench_forward(config, args.steps, args.rounds, args.peer)}


def conditions_of(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's arguments beside tokens and timestep, no caption dropped."""
    return {name: value for name, value in batch.items() if name != "tokens"} | {
        "text_drop": np.zeros_like(batch["text_drop"])
    }


def _apply(model: PixArt, params, tokens, t, conditions):
    return model.apply({"params": params}, tokens, t, **conditions)


def bench_forward(config: ConfigDict, calls: int, rounds: int, peer: str) -> Figures:
    device = jax.devices()[0]
    check_attention(config, device)
    model, batch = build_model(config), synthetic_batch(config)
    params = random_params(parameter_shapes(model), jnp.dtype(config.dtype))
    t = np.linspace(999, 0, config.data.batch_size).astype(np.int32)
    arguments = params, *jax.device_put((batch["tokens"], t, conditions_of(batch)))
    compiled = jax.jit(functools.partial(_apply, model)).lower(*arguments).compile()
    output = np.asarray(compiled(*arguments).eps)

    turn = functools.partial(time_warm, functools.partial(compiled, *arguments), calls, jax.block_until_ready)

    missing = missing_peer(config)
    theirs = () if missing else (peer_spec(config), batch, t)
    with open_peers(peer, missing, "torch_peer.Forward", *theirs) as (peers, absence):
        turns = {name: functools.partial(call, "turn", calls) for name, call in peers.items()}
        figures = compare(turn, turns, rounds)
        for name, row in (figures["peer"] or {}).items():
            row["max_difference"] = float(np.abs(peers[name]("output") - output).max())
            row["matrix_flops_per_second"] = peers[name]("matrix_rate")
    return {
        "images_per_second": config.data.batch_size / figures["seconds"],
        **figures,
        **absence,
        "output_std": float(output.std()),
        **flop_rates(forward_flops(model, *arguments[1:]), figures["seconds"], config.dtype, [device]),
        **peak_bytes(compiled, device),
        "dtype": config.dtype,
        "batch_size": config.data.batch_size,
        "tokens": position_base(config) ** 2,
        "steps": calls,
    }
