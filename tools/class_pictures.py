"""Pictures of prompts by the model itself, for DreamBooth's prior preservation: what it knows of a subject's class.

python -m tools.class_pictures --checkpoint weights/alpha-1024 --prompt "a photo of a dog" --out data/dogs

The folder is a source of pictures, the prompt beside each as its caption: --config.data.prior_source=data/dogs. The
same command goes on where a killed one stopped; several processes share the work if each is given its --process-index
of --process-count.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Sequence

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
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable, write_atomically
from pixart_jax.generation.picture_lists import Wanted, draw_list
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request

from .drawing_options import add_manner_options, as_typed
from .sample import ProgressLines
from .shares import add_share, check_share


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    draw(args)
    return 0


@as_typed()
def draw(args: argparse.Namespace) -> None:
    """Raises InputError for what cannot work, before anything is drawn."""
    if args.num_images < 1:
        raise InputError(f"--num-images {args.num_images}: draw at least one")
    prompts = [prompt for prompt in args.prompt for _ in range(args.num_images)]
    if args.seed + len(prompts) > 2**64:
        raise InputError(f"--seed {args.seed}: leaves fewer than {len(prompts)} seeds; take a smaller one")
    check_share(args)
    settings = {name: getattr(args, name) for name in ("sampler", "num_steps", "guidance_scale", "batch_size")}
    request = Request(args.prompt[0], **settings)
    check_writable(args.out, "--out")
    pipeline = TextToImage.from_checkpoint(args.checkpoint, text_encoder=args.text_encoder, vae=args.vae, ema=args.ema)
    wanted = [Wanted(f"{i:05d}.png", prompt, args.seed + i) for i, prompt in enumerate(prompts)]
    # Shared by groups.
    starts = range(args.process_index * args.batch_size, len(wanted), args.process_count * args.batch_size)
    lines, finished = ProgressLines(sum(min(args.batch_size, len(wanted) - start) for start in starts)), 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal finished
        if stage != "drawn":
            lines(stage, done, total)
            return
        lines.finish_group(done - finished)
        finished = done

    draw_list(
        pipeline,
        wanted,
        args.out,
        request,
        process_index=args.process_index,
        process_count=args.process_count,
        per_group=args.batch_size,
        progress=progress,
    )
    for one in wanted:
        if (args.out / one.name).exists():
            caption = (args.out / one.name).with_suffix(".txt")
            write_atomically(caption, operator.methodcaller("write", one.prompt.encode()))
    print(f"{finished} picture(s) of {', '.join(map(repr, args.prompt)):.80} are in {args.out}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("class_pictures"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=path_argument, metavar="DIR", help="of the model")
    parser.add_argument(
        "--prompt",
        required=True,
        action="append",
        type=text_argument,
        help="the class in words: 'a photo of a dog'; may be given several times",
    )
    parser.add_argument("--num-images", type=int, default=100, help="of each prompt (default: %(default)s)")
    parser.add_argument("--out", required=True, type=path_argument, metavar="DIR", help="for the pictures")
    parser.add_argument("--seed", type=seed_argument, default=0, help="of the first; each has the next one")
    add_manner_options(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at a time (default: %(default)s)")
    add_share(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
