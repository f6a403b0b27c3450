"""Options that every command has which draws: how the model is opened, and what is laid over it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from pixart_jax.commands import name_argument, path_argument
from pixart_jax.conversion.formats.lora_reading import read_loras
from pixart_jax.devices.sharding import MeshSpec
from pixart_jax.encoding.edges import KINDS
from pixart_jax.encoding.pretrained import TILE_SIZE
from pixart_jax.errors import InputError
from pixart_jax.generation.adaptation import AdapterFile
from pixart_jax.generation.controlled import ControlGiven, read_control
from pixart_jax.generation.lora import LoraFile
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.placing import parse_mesh
from pixart_jax.samplers import SAMPLERS
from pixart_jax.shortcuts.eight_bits import MODES

# Attributes of a `Request` that are options, in an error that is about one.
_SETTINGS = (
    "num_images", "num_steps", "guidance_scale", "guidance", "size", "aspect_ratio", "height", "width", "batch_size",
    "sampler", "seed",
)  # fmt: skip
_OF_REQUEST = re.compile(rf"(?<![\w.-])({'|'.join(_SETTINGS)}) = ")

# Their names in the parsed arguments.
OF_MODELS = (
    "ema",
    "lora",
    "alpha",
    "text_encoder",
    "vae",
    "dtype",
    "int8",
    "int8_text_encoder",
    "keep_loaded",
    "tile_size",
    "mesh",
)
OF_CONTROL = ("controlnet", "control", "control_kind", "control_scale", "hed")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What draws, for `read_adapters` and `open_pipeline`."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--lora",
        type=name_argument,
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        help="a LoRA or DoRA in any format, and how much of it (default: 1); may be given several times",
    )
    models.add_argument("--alpha", type=float, help="of a LoRA whose file does not tell it: its strength is alpha/rank")
    add_checkpoint_options(models, keep_loaded=False)


def add_checkpoint_options(models: argparse._ArgumentGroup, *, keep_loaded: bool) -> None:
    """How --checkpoint is opened, for `open_checkpoint`.

    Args:
      keep_loaded: the default of that option.
    """
    models.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="of a training run, the averaged weights (the default), or the raw ones",
    )
    models.add_argument(
        "--text-encoder", type=name_argument, metavar="DIR", help="a converted T5 (default: the checkpoint's)"
    )
    models.add_argument(
        "--vae", type=name_argument, metavar="DIR", help="a converted autoencoder (default: the checkpoint's)"
    )
    models.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of matrix products (default: bfloat16 but on a CPU)"
    )
    models.add_argument(
        "--int8",
        choices=("auto", *MODES),
        help="the model's linear layers in int8: their weights, their products too, or what is fastest on this device",
    )
    models.add_argument("--int8-text-encoder", action="store_true", help="hold T5's weights in int8")
    models.add_argument(
        "--keep-loaded",
        action=argparse.BooleanOptionalAction,
        default=keep_loaded,
        help="keep text encoder, model and autoencoder in device memory together, which is faster over many prompts, "
        f"or let them take turns (default: {'together' if keep_loaded else 'turns'})",
    )
    models.add_argument(
        "--tile-size",
        type=int,
        default=TILE_SIZE,
        help="latent cells along a side up to which pictures are decoded at once, 8 pixels each (default: %(default)s)",
    )
    models.add_argument(
        "--mesh",
        type=mesh_argument,
        metavar="[data=N,]context=N",
        help="how several devices draw: pictures and both branches of guidance over data, the tokens of each picture "
        "over context (default: all are data)",
    )


def mesh_argument(text: str) -> MeshSpec:
    """The `type` of an argument that is `placing.parse_mesh`'s."""
    try:
        return parse_mesh(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_manner_options(parser: argparse.ArgumentParser) -> None:
    """How a model draws many pictures for training: what is not given is as the checkpoint says."""
    parser.add_argument("--text-encoder", type=path_argument, metavar="DIR", help="where the checkpoint has none")
    parser.add_argument("--vae", type=path_argument, metavar="DIR", help="where the checkpoint has none")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, help="a run's averaged or raw weights")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: the checkpoint's)")
    parser.add_argument("--num-steps", type=int, help="(default: the checkpoint's)")
    parser.add_argument("--guidance-scale", type=float, help="(default: the checkpoint's)")


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """What pictures follow; see `read_adapters`."""
    control = parser.add_argument_group("control", "pictures that follow another one's edges")
    control.add_argument(
        "--controlnet",
        type=path_argument,
        metavar="PATH",
        help="for the checkpoint's model: PixArt's .pth, diffusers' research project's folder, a model with one in it, "
        "or the workdir of a run that trained one",
    )
    control.add_argument(
        "--control",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="what to follow: one for all prompts, or one for each; says the aspect ratio where nothing else does",
    )
    control.add_argument("--control-kind", choices=KINDS, help="what is made of it: edges by HED or Canny, or nothing")
    control.add_argument("--control-scale", type=float, help="its brightness, 0 to 1 (default: 1)")
    control.add_argument("--hed", type=path_argument, metavar="FILE", help="HED's weights, ControlNetHED.pth")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapters:
    """What a command lays over a model.

    Attributes:
      loras: in their order.
      control: what pictures follow, or None.
    """

    loras: Sequence[LoraFile]
    control: ControlGiven | None = None

    @property
    def files(self) -> list[AdapterFile]:
        """For `TextToImage.from_checkpoint`."""
        return [*(self.control.adapters if self.control else []), *self.loras]

    def about(self) -> dict[str, Any]:
        """What is to be told of the LoRAs beside a picture."""
        if not self.loras:
            return {}
        return {"lora": ", ".join(f"{lora.weights.path.name}:{lora.scale:g} ({lora.checksum})" for lora in self.loras)}


def read_adapters(args: argparse.Namespace, num_prompts: int) -> Adapters:
    """What is given by `add_model_options` and `add_control_options`; without the latter there is no control.

    Raises:
      InputError: options that do not go together, or a file that cannot be read.
    """
    control = None
    if hasattr(args, "control"):
        control = read_control(
            args.controlnet,
            args.control,
            num_prompts,
            kind=args.control_kind,
            scale=args.control_scale,
            hed=args.hed,
        )
    return Adapters([LoraFile(*pair) for pair in read_loras(args.lora, args.alpha)], control)


@contextlib.contextmanager
def as_typed(**renamed: str) -> Iterator[None]:
    """Decorates what draws: in errors, what a request calls `num_steps` is called --num-steps, as it was typed.

    Args:
      renamed: options of other names, by the attribute: batch_size="draw_batch_size".
    """

    def option(match: re.Match[str]) -> str:
        return f"--{renamed.get(match[1], match[1]).replace('_', '-')} = "

    try:
        yield
    except InputError as error:
        raise InputError(_OF_REQUEST.sub(option, str(error))) from error


def open_checkpoint(args: argparse.Namespace, adapters: Sequence[AdapterFile] = ()) -> TextToImage:
    """What `add_checkpoint_options` says, with adapters over it; raises InputError if there is no such model."""
    return TextToImage.from_checkpoint(
        args.checkpoint,
        ema=args.ema,
        text_encoder=args.text_encoder,
        vae=args.vae,
        dtype=args.dtype and jnp.dtype(args.dtype),
        keep_loaded=args.keep_loaded,
        tile_size=args.tile_size,
        int8=args.int8,
        int8_text_encoder=args.int8_text_encoder,
        adapters=adapters,
        mesh=args.mesh,
    )


def open_pipeline(args: argparse.Namespace, adapters: Adapters) -> TextToImage:
    """What draws; raises InputError if there is no such model, or an adapter is another model's."""
    pipeline = open_checkpoint(args, adapters.files)
    for lora in adapters.loras:
        if few := lora.weights.few_steps:
            print(
                f"{lora.weights.path} was distilled to few steps: unless you say otherwise, drawn with the sampler "
                f"{few.sampler} in {few.num_steps} steps, without guidance",
                file=sys.stderr,
            )
    if pipeline.parts.needs and not adapters.control:
        name, cure = next(iter(pipeline.parts.needs.items()))
        raise InputError(f"the condition {name} is missing: {cure}")
    return pipeline
