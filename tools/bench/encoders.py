"""The frozen encoders at work: T5-XXL over captions, and the autoencoder both ways. Random weights, on one device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from pixart_jax.errors import InputError
from pixart_jax.models.t5 import XXL, T5Encoder
from pixart_jax.models.vae import AutoencoderKL

from .options import check_peer, make_parser, parse
from .rates import peak_bytes
from .sample import AUTOENCODERS
from .turns import Figures, compare, time_warm

# T5 for tests.
TINY = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "num_heads": 2, "d_ff": 48, "num_layers": 2}


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of each encoder."""
    parser = make_parser(__name__, __doc__, calls=3)
    parser.add_argument("--captions", type=int, default=32, help="at a time (default: %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=300, help="of each (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=4, help="at a time (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=1024, help="pixels (default: %(default)s)")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny is for tests (default: full)")
    args, unknown = parse(parser, argv)
    if unknown:
        raise InputError(f"--what=encoders has no {' '.join(unknown)}")
    check_peer(args, (), "encoders are compared with none")
    for name in ("captions", "text_tokens", "pictures", "resolution"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}={getattr(args, name)}: must be at least 1")
    dtype = jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16
    full, about = args.size == "full", {"dtype": dtype.__name__, "peer_missing": "a comparison of encoders"}

    t5 = T5Encoder(**(XXL if full else TINY), dtype=dtype)
    ids = jnp.ones((args.captions, args.text_tokens), jnp.int32)
    figures = _bench(t5.apply, _constants(t5, ids, dtype), (ids,), args)
    shape = {"captions": args.captions, "text_tokens": args.text_tokens}
    yield {"encoder": "t5", **shape, **figures, "captions_per_second": args.captions / figures["seconds"], **about}

    vae = AutoencoderKL.from_config(AUTOENCODERS["sd" if full else "tiny"], dtype)
    pictures = jnp.zeros((args.pictures, args.resolution, args.resolution, 3))
    latents = jnp.zeros((args.pictures, *(side // vae.downsample for side in pictures.shape[1:3]), vae.latent_channels))
    params = _constants(vae, pictures[:1, : vae.downsample, : vae.downsample], dtype)
    shape = {"pictures": args.pictures, "resolution": args.resolution}
    for method, inputs in (("encode", pictures), ("decode", latents)):
        figures = _bench(functools.partial(vae.apply, method=method), params, (inputs,), args)
        rate = {"images_per_second": args.pictures / figures["seconds"]}
        yield {"encoder": f"vae {method}", **shape, **figures, **rate, **about}


def _constants(model, inputs, dtype):
    """Parameters that are made on the device; what they are does not change how long anything takes."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))["params"]
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, dtype if leaf.ndim > 1 else leaf.dtype), shapes)


def _bench(apply, params, inputs, args) -> Figures:
    compiled = jax.jit(lambda params, *inputs: apply({"params": params}, *inputs)).lower(params, *inputs).compile()
    call = functools.partial(compiled, params, *inputs)
    figures = compare(functools.partial(time_warm, call, args.steps, jax.block_until_ready), {}, args.rounds)
    return {**figures, **peak_bytes(compiled, jax.devices()[0]), "steps": args.steps}
