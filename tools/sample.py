"""Pictures from a trained model.

python -m tools.sample --workdir runs/quickstart --prompt "blue heart" --prompt "red apple"
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import time
from collections.abc import Sequence

from absl import logging

from pixart_jax.errors import InputError
from pixart_jax.generate import TextToImage
from pixart_jax.images import labelled_grid, save_png, to_uint8
from pixart_jax.samplers import SAMPLERS


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a checkpoint opened for reading is opened for reading.
    try:
        prompts = [prompt for prompt in args.prompt for _ in range(args.num_images)]
        if args.num_images < 1 or args.batch_size < 1:
            raise InputError("--num-images and --batch-size must be at least 1")
        out = pathlib.Path(args.out or pathlib.Path(args.workdir) / "generated")
        pipeline = TextToImage.from_workdir(args.workdir, ema=args.ema)
        begin = time.perf_counter()
        settings = {"seed": args.seed} | {
            name: getattr(pipeline if getattr(args, name) is None else args, name)
            for name in ("sampler", "num_steps", "guidance_scale")
        }
        images = to_uint8(pipeline(prompts, batch_size=args.batch_size, **settings))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    chunks = {name: str(value) for name, value in settings.items()}
    for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        save_png(out / f"{number:03d}_{slug(prompt)}.png", image, {"prompt": prompt, **chunks})
    sheet = out / "sheet.png"
    entries = list(zip(images, prompts, strict=True))
    save_png(sheet, labelled_grid(entries, columns=round(len(entries) ** 0.5)), chunks)
    print(f"{len(images)} picture(s) in {time.perf_counter() - begin:.1f} s, compilation included: {sheet}")
    return 0


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.sample", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a training run")
    parser.add_argument("--prompt", action="append", required=True, help="what to draw; may be given several times")
    parser.add_argument("--out", help="folder for the pictures (default: WORKDIR/generated)")
    parser.add_argument("--num-images", type=int, default=1, help="per prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the run's")
    parser.add_argument("--num-steps", type=int, help="default: the run's")
    parser.add_argument("--guidance-scale", type=float, help="default: the run's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="the averaged weights, or the raw ones"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
