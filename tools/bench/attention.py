"""Attention alone: every implementation that runs here, beside PyTorch's scaled_dot_product_attention.

Heads are those of XL/2, queries those of a square of each resolution, keys as many or, with compression, a square of
the ratio fewer. Backward is a forward pass and the gradients of q, k and v.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from pixart_jax.errors import InputError
from pixart_jax.models.attention import IMPLEMENTATIONS, PLAIN, AttentionSpec, attention, unmet_needs
from pixart_jax.tokens import DOWNSAMPLE

from .options import make_parser, numbers, parse
from .peer import missing_torch, open_peers, torch_device
from .rates import matrix_rate
from .turns import Call, Figures, compare, time_calls, time_warm

PATCH_SIZE = 2
# Logits beyond this are not made: on a CPU they would take all its memory.
MAX_LOGITS_BYTES = {"cpu": 2**32, "gpu": 2**35, "tpu": 2**32}


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of each implementation, resolution, compression, and of forward and backward."""
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--resolutions", default="256,512,1024,2048", help="pixels (default: %(default)s)")
    parser.add_argument("--kv-compress", default="1,2", help="ratios (default: %(default)s)")
    parser.add_argument("--text", default="", help="lengths of text that they attend to as well (default: none)")
    parser.add_argument("--batch-size", type=int, default=1, help="images (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--head-dim", type=int, default=72, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about as long a turn is (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(default: bfloat16 but on a CPU)")
    args, unknown = parse(parser, argv)
    if unknown:
        raise InputError(f"--what=attention has no {' '.join(unknown)}")
    for name in ("batch_size", "heads", "head_dim", "seconds"):
        if getattr(args, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')}={getattr(args, name)}: must be above 0")
    device = jax.devices()[0]
    dtype = args.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    resolutions, ratios = numbers("--resolutions", args.resolutions), numbers("--kv-compress", args.kv_compress)
    texts = numbers("--text", args.text) if args.text else []
    for resolution, ratio in itertools.product(resolutions, ratios):
        if resolution % (DOWNSAMPLE * PATCH_SIZE * ratio):
            raise InputError(f"--resolutions={resolution}: cannot be cut into blocks of {ratio} tokens of 16 pixels")
    with open_peers(args.peer, missing_torch(), "torch_parts.Attention", torch_device(), dtype) as (peers, absence):
        # Each ratio's keys, and those of texts.
        kinds = [(ratio, 0) for ratio in ratios] + [(1, length) for length in texts]
        for resolution, (ratio, length), backward in itertools.product(resolutions, kinds, (False, True)):
            queries = (resolution // (DOWNSAMPLE * PATCH_SIZE)) ** 2
            shape = (args.batch_size, queries, length or queries // ratio**2, args.heads, args.head_dim)
            about: dict[str, object] = {"resolution": resolution, "kv_compress": ratio, "backward": backward}
            about |= dict(zip(("batch_size", "queries", "keys", "heads", "head_dim"), shape, strict=True))
            about |= {"dtype": dtype} | absence
            for implementation in implementations(device, dtype, args.head_dim):
                figures = bench_attention(implementation, shape, dtype, backward, args, peers)
                yield {"implementation": implementation, **about, **figures}


def implementations(device: jax.Device, dtype: str, head_dim: int) -> list[str]:
    """Those that run on a device; Pallas's interpreter, which is splash's on a CPU, does not count."""
    return [
        name
        for name in IMPLEMENTATIONS
        if unmet_needs(name, device, jnp.dtype(dtype), head_dim) is None
        and name != "auto"
        and (name, device.platform) != ("splash", "cpu")
    ]


def attention_flops(batch: int, queries: int, keys: int, heads: int, head_dim: int, backward: bool) -> int:
    """Of the two matrix products, and of the four that their gradients are; what a kernel computes again is no work."""
    return (12 if backward else 4) * batch * queries * keys * heads * head_dim


def bench_attention(
    implementation: str,
    shape: tuple[int, int, int, int, int],
    dtype: str,
    backward: bool,
    args: argparse.Namespace,
    peers: dict[str, Call],
) -> Figures:
    batch, queries, keys, heads, head_dim = shape
    platform, logits_bytes = jax.devices()[0].platform, 4 * batch * heads * queries * keys
    if implementation == "plain" and logits_bytes > MAX_LOGITS_BYTES[platform]:
        return {"seconds": None, "skipped": f"{logits_bytes / 1e9:.0f} GB of logits"}
    shapes = [(batch, length, heads, head_dim) for length in (queries, keys, keys, queries)]
    q, k, v, d_out = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
    length = jnp.full(batch, keys, jnp.int32)

    def forward(spec, q, k, v, d_out, length):
        return attention(q, k, v, length, spec=spec)

    def both(spec, q, k, v, d_out, length):
        _, gradient = jax.vjp(functools.partial(attention, key_length=length, spec=spec), q, k, v)
        return gradient(d_out)

    compute = jax.jit(both if backward else forward, static_argnums=0)
    call = functools.partial(compute, AttentionSpec(implementation), q, k, v, d_out, length)
    difference = {}
    if implementation != "plain" and logits_bytes <= MAX_LOGITS_BYTES[platform]:
        difference = {"max_difference": largest_difference(call(), compute(PLAIN, q, k, v, d_out, length))}
    jax.block_until_ready(call())
    calls = math.ceil(args.seconds / time_calls(call, 1, jax.block_until_ready))
    turn = functools.partial(time_warm, call, calls, jax.block_until_ready)
    turns = {name: functools.partial(peer, "turn", *shape, backward, calls) for name, peer in peers.items()}
    figures = compare(turn, turns, args.rounds)
    rate = attention_flops(*shape, backward) / figures["seconds"]
    measured = matrix_rate(dtype, platform)
    return (
        figures
        | difference
        | {
            "flops_per_second": rate,
            "matrix_flops_per_second": measured,
            "utilisation": rate / measured,
            "steps": calls,
        }
    )


def largest_difference(got, wanted) -> float:
    """Of any number of the outputs, or of the three gradients, as a share of the largest of its array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    shares = [jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b.astype(jnp.float32)).max() for a, b in pairs]
    return float(max(shares))
