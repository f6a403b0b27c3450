"""Pictures to dense captions, by a vision-language model of transformers, as a source for tools.extract_features.

python -m tools.caption photos/ --model llava-hf/llava-1.5-7b-hf --out data/photos-llava
python -m tools.caption list.json --model weights/llava --out data/laion-llava --old-caption-weight 0.2
python -m tools.caption "sam-{000000..000999}.tar" --model Qwen/Qwen2.5-VL-7B-Instruct --out data/sam-qwen \
    --without-caption --process-index 3 --process-count 16
python -m tools.extract_features --source data/photos-llava/captions.jsonl --out data/train --resolution 512 ...

Pictures need no captions. Killed and started again with the same command, it goes on. Needs PyTorch: pip
install torch torchvision accelerate. docs/captions.md has the models, the requests and what is written.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence

from pixart_jax.commands import (
    GOES_ON,
    command,
    name_argument,
    path_argument,
    quieten_libraries,
    text_argument,
    tool,
    with_commands,
)
from pixart_jax.data.pictures import BadItem, Pictures
from pixart_jax.encoding.captioned import LIST_FILE, ODD_FILE, WITHOUT_CAPTION, CaptionedPictures
from pixart_jax.encoding.captioner import DTYPES, Captioner
from pixart_jax.encoding.skipped import skipped_reasons
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable
from pixart_jax.files.typed_json import parse
from pixart_jax.files.unit_work import SKIPPED_FILE, work_through
from pixart_jax.training.metrics import format_duration

from .picture_source import add_picture_options, open_named
from .shares import add_share, check_counts, check_share, share_of


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # of bad files, which are counted and listed
    begin = time.perf_counter()
    check_arguments(args)
    finished = work_through(
        open_units(args),
        args.out,
        **share_of(args),
    )
    seconds = format_duration(time.perf_counter() - begin)
    if not finished:
        print(f"this process's share is done in {seconds}; the captions are there when the others are done too")
        return 0
    print(f"{args.out}: done in {seconds}\n{summary(args.out)}")
    return 0


def open_units(args: argparse.Namespace) -> CaptionedPictures:
    """The source and the model that the command line names."""
    pictures, about = open_named(args, args.pictures)
    print(f"{args.pictures}: {len(pictures)} items; every {args.items_per_unit} are a line here", file=sys.stderr)
    request = WITHOUT_CAPTION if args.without_caption else args.request
    # Before the model is opened, which takes minutes.
    if request and "{caption}" in request and not any(has_caption(pictures, index) for index in range(len(pictures))):
        raise InputError(
            f"--request holds {{caption}}, and no picture of {args.pictures} has a caption; leave {{caption}} out"
        )
    captioner = Captioner(args.model, device=args.device, dtype=args.dtype, max_new_tokens=args.max_new_tokens)
    return CaptionedPictures(
        pictures,
        captioner,
        args.out.absolute(),
        request=request,
        old_caption_weight=args.old_caption_weight,
        about={
            **about,
            "model": args.model,
            "weights": captioner.fingerprint,
            "dtype": captioner.dtype,
            "max_new_tokens": args.max_new_tokens,
        },
        items_per_unit=args.items_per_unit,
        batch_size=args.batch_size,
        picture_side=args.picture_side,
        min_side=args.min_side,
        max_pixels=args.max_pixels,
        num_threads=args.num_threads,
    )


def has_caption(pictures: Pictures, index: int) -> bool:
    try:
        return bool(pictures.words(index).captions)
    except BadItem:
        return False


def summary(out: pathlib.Path) -> str:
    """What became of the pictures, and how to go on."""
    with (out / ODD_FILE).open("rb") as file:
        odd = [parse(line) for line in file]
    lines = []
    if odd:
        kinds = ", ".join(
            f"{count} {what}" for what, count in sorted(collections.Counter(r["what"] for r in odd).items())
        )
        lost = sum(not row["kept"] for row in odd)
        lines.append(f"answers to look at ({out / ODD_FILE}): {kinds}; {lost} pictures were left out for them")
    if reasons := skipped_reasons(out / SKIPPED_FILE):
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        lines.append(f"{reasons.total()} items skipped ({out / SKIPPED_FILE}): {counts}")
    source = out / LIST_FILE if (out / LIST_FILE).exists() else f'"{out}/*.tar"'
    lines.append(f"encode them: {command('extract_features')} --source {source} --out DIR ...")
    return "\n".join(lines)


def check_arguments(args: argparse.Namespace) -> None:
    """Before the model is opened, which takes minutes."""
    check_share(args)
    counts = (
        "items_per_unit",
        "batch_size",
        "num_threads",
        "max_new_tokens",
        "picture_side",
        "min_side",
        "max_pixels",
    )
    check_counts(args, counts)
    if not 0 <= args.old_caption_weight < 1:
        raise InputError(f"--old-caption-weight must be at least 0 and below 1, not {args.old_caption_weight}")
    if args.without_caption and args.request is not None:
        raise InputError(
            "--without-caption is for the paper's request; a --request of yours shows what {caption} shows"
        )
    if args.request is not None and not args.request.strip():
        raise InputError("--request is empty; leave it out for the paper's")
    if args.out.exists():
        raise InputError(f"{args.out} exists already; remove it, or name another folder")
    check_writable(args.out, "--out")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("caption"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pictures", type=name_argument, metavar="PICTURES", help="any source of extraction; see docs/data.md"
    )
    parser.add_argument(
        "--model", type=name_argument, required=True, metavar="DIR_OR_ID", help="a folder, or a repository of the hub"
    )
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="must not exist")
    add_picture_options(parser)
    parser.add_argument("--min-side", type=int, default=64, help="skip smaller pictures (default: %(default)s px)")
    parser.add_argument("--max-pixels", type=int, default=2**27, help="skip larger pictures (default: %(default)s)")

    asking = parser.add_argument_group("asking")
    asking.add_argument(
        "--without-caption", action="store_true", help="ask without the caption that a picture has, as for SAM"
    )
    asking.add_argument(
        "--request",
        type=text_argument,
        metavar="TEXT",
        help="in place of the paper's; {caption} stands for the caption that a picture has",
    )
    asking.add_argument("--max-new-tokens", type=int, default=512, help="longer answers are cut (default: %(default)s)")
    asking.add_argument("--picture-side", type=int, default=1024, help="shrink longer sides to (default: %(default)s)")
    asking.add_argument("--batch-size", type=int, default=8, help="pictures at a time (default: %(default)s)")
    asking.add_argument(
        "--device", help="as PyTorch names it; auto: all GPUs together (default: a GPU if there is one)"
    )
    asking.add_argument("--dtype", choices=DTYPES, help="of the model (default: bfloat16 but on a CPU)")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--old-caption-weight",
        type=float,
        default=0.5,
        help="how often training draws an old caption; 0 leaves them out (default: %(default)s, as PixArt-Σ's)",
    )
    output.add_argument(
        "--items-per-unit", type=int, default=256, help="what a kill can cost at most (default: %(default)s)"
    )

    add_share(parser).add_argument("--num-threads", type=int, default=os.cpu_count() or 1, help="that read and decode")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
