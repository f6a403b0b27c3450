"""What tools.convert is told on the command line."""

from __future__ import annotations

import argparse

from pixart_jax.commands import command, name_argument, path_argument, seed_argument, with_commands
from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.conversion.formats.lora_writing import ADAPTER_WRITERS
from pixart_jax.models.layers import KV_SAMPLINGS
from pixart_jax.samplers import SAMPLERS
from pixart_jax.warm_start.reparameterize import UNCONDITIONAL

FORMATS = ("orbax", "pixart", "diffusers", "controlnet", *ADAPTER_WRITERS)

# Options that only --reparameterize heeds.
REPARAMETERIZE_OPTIONS = ("unconditional", "text_dim", "max_text_tokens", "seed")


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command("convert"),
        description=with_commands(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        type=name_argument,
        metavar="SRC",
        help="a file or folder in any format, a run's workdir, or owner/name[/file] on the hub",
    )
    parser.add_argument("target", metavar="DST", type=path_argument, help="must not exist")
    parser.add_argument("--to", choices=FORMATS, default="orbax", help="format of DST (default: %(default)s)")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="where SRC has both: the averaged weights, or not (default: not for PixArt's own checkpoints, else yes)",
    )
    parser.add_argument("--family", choices=FAMILIES, help="where SRC does not tell it; for a pipeline, which class's")
    parser.add_argument("--num-heads", type=int, help="where the hidden size does not tell it")
    parser.add_argument(
        "--resolution", type=int, help="pixels along one side of the square, where SRC does not tell it"
    )
    parser.add_argument("--position-scale", type=float, help="where SRC does not tell it, or wrongly")
    parser.add_argument(
        "--kv-sampling",
        choices=KV_SAMPLINGS,
        help="how SRC was trained to compress keys and values, where not by a convolution, which alone leaves weights",
    )
    parser.add_argument("--kv-ratio", type=int, metavar="R", help="of --kv-sampling (default: 2)")
    parser.add_argument("--kv-from", type=int, metavar="BLOCK", help="the first that has it (default: the middle)")
    parser.add_argument(
        "--null-text",
        type=path_argument,
        help="features of the empty caption, to be the null caption: a .npy, or PixArt-Σ's null_embed_diffusers_*.pth",
    )
    parser.add_argument(
        "--lora",
        type=name_argument,
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        help="merge a LoRA or DoRA of any format into the weights, so much of it (default: 1); several may be given",
    )
    parser.add_argument("--alpha", type=float, help="of a LoRA whose file does not tell it: its strength is alpha/rank")
    parser.add_argument(
        "--controlnet",
        type=path_argument,
        metavar="PATH",
        help="a ControlNet for SRC, to go beside it: PixArt's .pth, diffusers' research project's folder, a model with "
        "one in it, or the workdir of a run that trains one",
    )
    encoders = parser.add_mutually_exclusive_group()
    encoders.add_argument(
        "--encoders",
        type=name_argument,
        metavar="DIR",
        help="a pipeline's folder or hub id, or a directory of ours, whose text encoder (with its tokenizer) and "
        "autoencoder go beside the transformer (default: SRC's own, where it has them)",
    )
    encoders.add_argument("--no-encoders", action="store_true", help="the transformer only, without those")
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="what the weights are drawn with by default, where SRC does not tell it: lcm or dmd of models distilled "
        "for few steps, which draw without guidance",
    )
    parser.add_argument(
        "--ignore-scheduler",
        action="store_true",
        help="take the transformer of a pipeline whose scheduler is for another kind of network, and draw as usual",
    )
    group = parser.add_argument_group(
        "re-parameterization",
        "from a class-conditional DiT to a PixArt with captions, for the second stage of training",
    )
    group.add_argument(
        "--reparameterize",
        metavar="METHOD",
        help="t500 equals the DiT at t = 500, likewise any tN; mean is closest over all timesteps",
    )
    group.add_argument(
        "--unconditional",
        choices=UNCONDITIONAL,
        help="what the DiT is without a class: the null class of its guidance, or no vector at all (default: null)",
    )
    group.add_argument("--text-dim", type=int, help="width of the text features (default: 4096)")
    group.add_argument("--max-text-tokens", type=int, help="longest caption (default: the family's; 120 without one)")
    group.add_argument("--seed", type=seed_argument, help="of the parameters that a DiT lacks (default: 0)")
    return parser
