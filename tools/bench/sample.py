"""Drawing pictures: seconds of one and pictures per second of a batch, beside a loop over diffusers' transformer.

On one device, from text features to latents; with --vae to pixels. Sampler, steps and guidance are the config's; the
peer takes as many steps of DPM-Solver++. With --config.sample.sampler=dpm-solver-diffusers both do the same arithmetic,
and the largest difference between their latents is one of the figures.

With --shortcuts, a line for each of `shortcuts.SHORTCUTS` in place of all that; with --checkpoint and --source, too.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from pixart_jax.commands import command
from pixart_jax.config import ConfigDict, build_model, check_attention, position_base, target_of
from pixart_jax.errors import InputError
from pixart_jax.models.params import apply_of, parameter_shapes
from pixart_jax.models.vae import AutoencoderKL
from pixart_jax.rng import seed_words
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.guidance import null_branch
from pixart_jax.samplers.program import draw_noise, make_sample_fn
from pixart_jax.tokens import block_order, unpatchify
from pixart_jax.training.flops import forward_flops

from . import shortcuts
from .forward import conditions_of
from .options import check_peer, make_parser, numbers, parse_with_config
from .peer import missing_peer, open_peers, peer_spec, random_params
from .rates import peak_bytes
from .train import flop_rates, synthetic_batch
from .turns import Figures, compare, time_warm

# Stable Diffusion's autoencoder, which is SDXL's too but for the scaling factor, and one for tests.
AUTOENCODERS = {
    "sd": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4},
    "tiny": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4},
}
COMPARABLE = "dpm-solver-diffusers"


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of each batch size, or of each shortcut."""
    if any(argument.startswith("--checkpoint") for argument in argv):
        parser = argparse.ArgumentParser(prog=f"{command('bench')} --what=sample", description=shortcuts.__doc__)
        shortcuts.add_checkpoint_options(parser)
        yield from shortcuts.with_checkpoint(parser.parse_args(argv))
        return
    parser = make_parser(__name__, __doc__, calls=3)
    parser.add_argument("--batch-sizes", default="1,8", help="pictures drawn at a time (default: %(default)s)")
    parser.add_argument("--vae", choices=AUTOENCODERS, help="decode to pixels, with random weights (default: latents)")
    parser.add_argument("--shortcuts", action="store_true", help="a line for each shortcut, without a peer")
    args, config, about = parse_with_config(parser, argv)
    if config.model.num_classes:
        raise InputError(f"config.model.num_classes = {config.model.num_classes}: --what=sample draws captions")
    if args.shortcuts:
        check_peer(args, (), "--shortcuts are compared with the whole model, not with PyTorch")
        if args.vae:
            raise InputError(
                f"--vae={args.vae}: --shortcuts draw latents, which are all that they change; leave it out"
            )
    for batch_size in numbers("--batch-sizes", args.batch_sizes):
        config.data.batch_size = batch_size
        if args.shortcuts:
            yield from ({**about, **line} for line in shortcuts.with_random_weights(config, args.steps, args.rounds))
            continue
        yield {**about, **bench_sample(config, args.vae, args.steps, args.rounds, args.peer)}


def make_decoder(config: ConfigDict, autoencoder: AutoencoderKL):
    """(parameters, tokens f32[B, N, p·p·C]) -> pictures f32[B, H, W, 3]; compiled."""
    model, side = build_model(config), position_base(config)
    order = np.argsort(block_order((side, side), max(model.kv_compress, default=1)))

    @jax.jit
    def decode(params, tokens):
        latents = unpatchify(tokens[:, order], (side, side), model.patch_size) / autoencoder.scaling_factor
        return autoencoder.apply({"params": params}, latents, method="decode")

    return decode


def autoencoder_shapes(autoencoder: AutoencoderKL) -> dict[str, tuple[int, ...]]:
    """'/'-joined path to shape of each parameter; allocates nothing."""
    images = jnp.zeros((1, autoencoder.downsample, autoencoder.downsample, 3))
    shapes = jax.eval_shape(lambda: autoencoder.init(jax.random.key(0), images))["params"]
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()}


def bench_sample(config: ConfigDict, vae: str | None, calls: int, rounds: int, peer: str) -> Figures:
    device, dtype = jax.devices()[0], jnp.dtype(config.dtype)
    check_attention(config, device)
    sampling, model, batch = config.sample, build_model(config), synthetic_batch(config)
    batch_size, conditions = config.data.batch_size, conditions_of(batch)
    params = random_params(parameter_shapes(model), dtype)
    x, keys = draw_noise(seed_words(0), np.arange(batch_size), batch["tokens"].shape[1:])
    arguments = jax.device_put((params, x, keys, conditions, null_branch(conditions), sampling.guidance_scale))
    target = target_of(config)
    schedule = target.schedule(sampling.sampler)
    sampler = build_sampler(sampling.sampler, schedule, sampling.num_steps)
    compiled = make_sample_fn(target.fit(apply_of(model), schedule), schedule, sampler).lower(*arguments).compile()
    draw: Callable[[], Any] = functools.partial(compiled, *arguments)
    vae_peer = None
    if vae:
        autoencoder = AutoencoderKL.from_config(AUTOENCODERS[vae], dtype)
        shapes = autoencoder_shapes(autoencoder)
        decode, vae_params = make_decoder(config, autoencoder), random_params(shapes, dtype)
        vae_peer = AUTOENCODERS[vae] | _block_types(len(autoencoder.block_out_channels)), shapes

        def draw_pictures():
            return decode(vae_params, compiled(*arguments)[0])

        draw = draw_pictures

    turn = functools.partial(time_warm, draw, calls, jax.block_until_ready)
    missing, noise = missing_peer(config), np.asarray(x)
    theirs: tuple[Any, ...] = ()
    if not missing:
        theirs = peer_spec(config), conditions, sampling.guidance_scale, sampling.num_steps, vae_peer
    with open_peers(peer, missing, "torch_sample.Sample", *theirs) as (peers, absence):
        turns = {name: functools.partial(call, "turn", noise, calls) for name, call in peers.items()}
        figures = compare(turn, turns, rounds)
        if sampling.sampler == COMPARABLE:
            latents = np.asarray(compiled(*arguments)[0])
            for name, row in (figures["peer"] or {}).items():
                row["max_difference"] = float(np.abs(peers[name]("sample", noise) - latents).max())
            figures["latents_std"] = float(latents.std())
    both = {name: np.concatenate([value] * 2) for name, value in conditions.items()}
    flops = forward_flops(model, np.concatenate([noise] * 2), np.zeros(2 * batch_size, np.float32), both)
    # A picture's pixels are no part of the FLOPs.
    rates = {} if vae else flop_rates(flops and flops * sampling.num_steps, figures["seconds"], config.dtype, [device])
    return {
        "images_per_second": batch_size / figures["seconds"],
        **figures,
        **absence,
        **rates,
        **peak_bytes(compiled, device),
        "dtype": config.dtype,
        "batch_size": batch_size,
        "tokens": position_base(config) ** 2,
        "sampler": sampling.sampler,
        "num_steps": sampling.num_steps,
        "guidance_scale": sampling.guidance_scale,
        "vae": vae,
        "steps": calls,
    }


def _block_types(count: int) -> dict[str, list[str]]:
    """diffusers' config repeats for each resolution what kind of block it has."""
    return {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}
