"""Pictures from prompts, with converted weights or a training run.

python -m tools.sample --checkpoint weights/sigma-1024 --prompt "a lighthouse in fog" --aspect-ratio 16:9
python -m tools.sample --checkpoint weights/alpha-512 --text-encoder weights/t5 --vae weights/vae --prompts prompts.txt
python -m tools.sample --checkpoint runs/quickstart --prompt "blue heart" --prompt "red apple"
python -m tools.sample --checkpoint weights/sigma-1024 --prompt "a red cat" --image a.png --mask hole.png --paste-back
python -m tools.sample --checkpoint weights/sigma-1024 --lora style.safetensors:0.8 --prompt "a lighthouse in fog"
python -m tools.sample --checkpoint weights/alpha-1024 --prompt "a house" --controlnet PixArt-XL-2-1024-ControlNet.pth \
    --control photo.jpg --control-kind hed --hed ControlNetHED.pth

A run that was interrupted goes on when it is started again: pictures that are there already, with the same settings in
their text chunk, are not drawn again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import re
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, PngImagePlugin

from pixart_jax.commands import (
    GOES_ON,
    command,
    path_argument,
    quieten_libraries,
    seed_argument,
    text_argument,
    tool,
    with_commands,
)
from pixart_jax.data.prompts import read_prompts
from pixart_jax.data.styles import OWN_STYLES, Style, chosen, read_styles
from pixart_jax.errors import InputError
from pixart_jax.figures.images import enlarged, labelled_grid, save_png
from pixart_jax.files import check_writable, open_regular
from pixart_jax.generation.given import read_given
from pixart_jax.generation.request import Request
from pixart_jax.samplers import SAMPLERS
from pixart_jax.samplers.program import GUIDANCES
from pixart_jax.shortcuts.reuse import PRESETS
from pixart_jax.training.metrics import format_duration

from .drawing_options import add_control_options, add_model_options, as_typed, open_pipeline, read_adapters

# Pictures between two times that files are written: as much is lost when a long run is killed, and as often text
# encoder, model and autoencoder take turns on the device.
GROUP = 256
# The contact sheet: at most so many pictures, each at most so many pixels wide and high.
SHEET_PICTURES, SHEET_PIXELS = 64, 384
# What says how large pictures are.
SHAPE = ("size", "aspect_ratio", "height", "width")
# How they are drawn, where the model is not to say it.
SAMPLING = ("sampler", "num_steps", "guidance", "guidance_scale", "guidance_interval", "reuse")


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    out = args.out or args.checkpoint / "generated"
    begin = time.perf_counter()
    drawn, wanted = draw(args, out)
    if drawn:
        duration = format_duration(time.perf_counter() - begin)
        print(f"{drawn} picture(s) in {duration}, compilation included: {out}/sheet.png")
    else:
        print(f"nothing to draw: all {wanted} picture(s) are there already: {out}/sheet.png")
    return 0


@as_typed()
def draw(args: argparse.Namespace, out: pathlib.Path) -> tuple[int, int]:
    """Draws what is not there yet, group by group; returns how many pictures that were, and how many were asked for."""
    prompts = args.prompt if args.prompts is None else read_prompts(args.prompts, "--prompts")
    negative = [args.negative_prompt] * len(prompts)
    if styles := open_styles(args):
        pairs = [style.of(prompt, args.negative_prompt) for prompt in prompts for style in styles]
        prompts, negative = ([pair[side] for pair in pairs] for side in (0, 1))
    given = read_given(args.image, args.mask, args.reference, strength=args.strength, keep_pixels=args.paste_back)
    check_writable(out, "--out")
    adapters = read_adapters(args, len(prompts))
    control = adapters.control
    pipeline = open_pipeline(args, adapters)
    parts = pipeline.parts
    shape = {name: getattr(args, name) for name in SHAPE}
    asked = {name: getattr(args, name) for name in ("num_images", "batch_size", "seed", *SAMPLING)}
    shape = given.shape(shape, pipeline.resolution) if given else shape
    asked |= control.shape(shape, pipeline) if control else shape
    # What is wrong with a setting is said before anything is drawn.
    asked["negative_prompt"] = args.negative_prompt
    manner = pipeline.manner(Request(prompts, **asked))
    if not manner.has_null_branch:  # A style's own is for who guides.
        negative = [None] * len(prompts)
    elif styles:
        asked["negative_prompt"] = negative
    whole = Request(prompts, **asked)
    canvas = whole.canvas(pipeline.resolution)
    if canvas.size != pipeline.resolution:
        print(f"drawn at {canvas.size} px; the model was trained at {pipeline.resolution} px", file=sys.stderr)
    about = {"checkpoint": args.checkpoint.absolute().name, "ema": args.ema, "size": canvas.size}
    about |= {"seed": args.seed}
    about |= {"sampler": manner.sampler, "num_steps": manner.num_steps}
    about |= {"guidance": manner.guidance} if manner.guidance != "cfg" else {}
    about |= {"guidance_scale": manner.guidance_scale} if manner.guidance != "none" else {}
    about |= {name: getattr(manner, name) or None for name in ("guidance_interval", "reuse")} | {"int8": args.int8}
    about |= {"height": canvas.height, "width": canvas.width} | (given.about() if given else {})
    about |= adapters.about()

    def text(place: int, number: int) -> dict[str, str]:
        chunks = {"prompt": prompts[place], "image": number, "negative_prompt": negative[place]} | about
        chunks |= {"step": parts.step()}
        chunks |= control.about(place) if control else {}
        return {name: str(value) for name, value in chunks.items() if value is not None}

    size = (canvas.width // 2 if given and given.is_reference else canvas.width, canvas.height)

    def is_drawn(path: pathlib.Path, wanted: dict[str, str]) -> bool:
        return (picture := read_picture(path, size)) is not None and picture[1] == wanted

    digits = max(3, len(str(whole.count - 1)))
    paths = [
        [out / f"{i * args.num_images + k:0{digits}d}_{slug(prompt)}.png" for k in range(args.num_images)]
        for i, prompt in enumerate(prompts)
    ]
    sheet = out / "sheet.png"
    if blocked := [path for path in (sheet, *itertools.chain(*paths)) if path.is_dir()]:
        raise InputError(f"{blocked[0]} is a folder, where a picture is to be; move it, or name another --out")
    missing = [i for i in range(len(prompts)) if any(not is_drawn(path, text(i, k)) for k, path in enumerate(paths[i]))]
    if len(missing) < len(prompts):
        print(f"{out}: {len(prompts) - len(missing)} of {len(prompts)} prompts are drawn already", file=sys.stderr)
    # Models that stay need not take turns.
    per_group = max(1, (pipeline.at_once(whole) if args.keep_loaded else GROUP) // args.num_images)
    if missing:
        count = len(missing) * args.num_images
        print(f"encoding, drawing and decoding {count} picture(s); each of the three compiles first", file=sys.stderr)
    latents = given.latents(pipeline, whole) if given and missing else None
    progress = ProgressLines(len(missing) * args.num_images)
    for start in range(0, len(missing), per_group):
        group = missing[start : start + per_group]
        request = dataclasses.replace(whole, prompts=[prompts[i] for i in group])
        if given and latents is not None:
            request = given.begin(pipeline, request, latents)
        request = control.under(pipeline, request, group) if control else request
        for number, image in enumerate(pipeline.draw_each(request, progress)):
            i, k = group[number // args.num_images], number % args.num_images
            image = given.finish(image, canvas) if given else image
            save_png(paths[i][k], image, text(i, k))
        progress.finish_group(request.count)
    flat = [(path, prompt) for row, prompt in zip(paths, prompts, strict=True) for path in row]
    write_sheet(sheet, flat[:SHEET_PICTURES], size)
    return len(missing) * args.num_images, whole.count


class ProgressLines:
    """Prints what is being done, how fast, and when all will be done, at most every few seconds."""

    def __init__(self, total: int, every: float = 5.0):
        self._total, self._every = total, every
        self._begin = self._printed = time.perf_counter()
        self._finished = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._printed < self._every:
            return
        self._printed = now
        line = f"{stage} {done}/{total}"
        if self._finished:  # The first group, which compiles, tells nothing about the others.
            rate = self._finished / (now - self._begin)
            left = format_duration((self._total - self._finished) / rate)
            line += f"; {self._finished}/{self._total} pictures, {rate:.2f}/s, {left} to go"
        print(line, file=sys.stderr, flush=True)

    def finish_group(self, count: int) -> None:
        self._finished += count


def read_picture(path: pathlib.Path, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, str]] | None:
    """Pixels and text chunk of a picture of this (width, height), or None where there is no whole one: of another size,
    or of too many pixels for memory, it is none of ours."""
    try:
        with (
            open_regular(path) as file,
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=("PNG",)) as image,
        ):
            if image.size != size or image.mode != "RGB" or not isinstance(image, PngImagePlugin.PngImageFile):
                return None
            image.load()
            return np.asarray(image), dict(image.text)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
        return None


def write_sheet(path: pathlib.Path, pictures: Sequence[tuple[pathlib.Path, str]], size: tuple[int, int]) -> None:
    """Small copies of the pictures of this (width, height) with their prompts; names those that cannot be read."""
    entries = []
    for file, prompt in pictures:
        if (picture := read_picture(file, size)) is None:
            print(
                f"{file} is no picture of {size[0]} x {size[1]} pixels, or damaged: left out of {path}; give the same "
                "command again to draw it",
                file=sys.stderr,
            )
            continue
        image = Image.fromarray(picture[0])
        image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
        entries.append((enlarged(np.asarray(image)), prompt))
    if entries:
        save_png(path, labelled_grid(entries, columns=round(len(entries) ** 0.5)))


def open_styles(args: argparse.Namespace) -> list[Style]:
    """What every prompt is drawn in, all of them; [] draws the prompts as they are."""
    if not (args.style or args.styles):
        if args.style_file:
            raise InputError("--style-file: only --style and --styles heed it; add one of them, or leave it out")
        return []
    styles = read_styles(args.style_file or OWN_STYLES)
    return list(styles.values()) if args.styles else chosen(styles, args.style)


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("sample"), description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="what tools.convert wrote, or the workdir of a training run",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=text_argument, action="append", help="what to draw; may be given several times")
    what.add_argument("--prompts", type=path_argument, metavar="FILE", help="a text file of prompts, one a line")
    parser.add_argument("--out", type=path_argument, help="folder for the pictures (default: DIR/generated)")
    parser.add_argument(
        "--negative-prompt", type=text_argument, help="what to move away from (default: the model's null caption)"
    )
    style = parser.add_mutually_exclusive_group()
    style.add_argument(
        "--style",
        action="append",
        default=[],
        metavar="NAME",
        help=f"words around the prompts: {', '.join(read_styles())}; may be given several times",
    )
    style.add_argument("--styles", action="store_true", help="each prompt in every style")
    parser.add_argument("--style-file", type=path_argument, metavar="FILE.json", help="your own in place of ours")
    parser.add_argument("--num-images", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--seed", type=seed_argument, default=0, help="up to 2⁶⁴ - 1")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at a time (default: %(default)s)")

    shape = parser.add_argument_group("size", "pictures are drawn in the bucket of the nearest aspect ratio")
    shape.add_argument("--size", type=int, help="pixels along a side of the square (default: the model's)")
    shape.add_argument("--aspect-ratio", metavar="WIDTH:HEIGHT", help="such as 16:9 (default: 1:1)")
    shape.add_argument("--height", type=int, help="with --width, in place of a ratio: resized and cropped to this")
    shape.add_argument("--width", type=int)

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--sampler", choices=SAMPLERS, help="default: the model's")
    sampling.add_argument("--num-steps", type=int, help="default: 20, or the run's")
    sampling.add_argument("--guidance-scale", type=float, help="default: 4.5, or the run's")
    sampling.add_argument(
        "--guidance",
        choices=GUIDANCES,
        help="none takes half the time, for models that need none (default: the model's)",
    )
    sampling.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide only from timestep LOW to HIGH of 0 to 1000; other steps take half the time (default: all)",
    )
    sampling.add_argument(
        "--reuse",
        choices=PRESETS,
        help="so many times less work: what blocks changed at earlier steps is used again (default: nothing is)",
    )

    start = parser.add_argument_group("from a picture", "where no size is named, the picture's shape is drawn")
    start.add_argument("--image", type=path_argument, metavar="FILE", help="draw near this picture")
    start.add_argument(
        "--strength", type=float, help="how far from it, up to 1, which is all anew (default: 0.6, with --mask 1)"
    )
    start.add_argument(
        "--mask", type=path_argument, metavar="FILE", help="as large as the picture: white is drawn anew, black is kept"
    )
    start.add_argument(
        "--paste-back", action="store_true", help="give what is kept the picture's own pixels, not the autoencoder's"
    )
    start.add_argument(
        "--reference",
        type=path_argument,
        metavar="FILE",
        help="draw the right half of a canvas whose left half this is",
    )

    add_control_options(parser)
    add_model_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
