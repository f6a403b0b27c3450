"""How much captions name: nouns per picture, valid and distinct nouns and their ratio, as in Table 1 of PixArt-α.

python -m tools.concepts photos/
python -m tools.concepts list.json --caption-weights prompt=1,sharegpt4v=0 --out concepts/prompts
python -m tools.concepts data/train --tagger spacy --out concepts/train     # the captions of feature shards
python -m tools.concepts "sam-{000000..000999}.tar" --out concepts/sam --process-index 3 --process-count 16

The pictures are not read. Several captions of a picture count by their weights, unless --caption names one of them.
With --out, the result, the lists of valid and of rare nouns and a picture of both are written to DIR, and a killed
count goes on with the same command; docs/captions.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from pixart_jax.commands import GOES_ON, command, name_argument, path_argument, quieten_libraries, tool, with_commands
from pixart_jax.data.noun_counts import Captions, NounCounts, ShardCaptions
from pixart_jax.data.nouns import TAGGERS, open_tagger
from pixart_jax.data.shards.manifest import MANIFEST_FILE
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import work_through
from pixart_jax.training.metrics import format_duration

from .picture_source import OPTIONS, add_picture_options, open_named
from .shares import add_share, check_counts, check_share, share_of


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    begin = time.perf_counter()
    check_arguments(args)
    if args.out:
        finished = count(args, args.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            finished = count(args, pathlib.Path(folder, "concepts"))
    seconds = format_duration(time.perf_counter() - begin)
    if not finished:
        print(f"this process's share is done in {seconds}; the result is there when the others are done too")
    elif args.out:
        print(f"{args.out}: done in {seconds}")
    return 0


def count(args: argparse.Namespace, out: pathlib.Path) -> bool:
    """Whether the result is there, which then is printed."""
    captions, about = open_captions(args)
    units = NounCounts(
        captions,
        open_tagger(args.tagger),
        about=about,
        only=args.caption,
        lower_case=args.lower_case,
        items_per_unit=args.items_per_unit,
        num_threads=args.num_threads,
    )
    finished = work_through(
        units,
        out,
        **share_of(args),
    )
    if finished:
        print((out / "result.md").read_text(encoding="utf-8"), end="")
    return finished


def open_captions(args: argparse.Namespace) -> tuple[Captions, dict[str, Any]]:
    """The source, and what it is."""
    if os.path.isfile(os.path.join(args.source, MANIFEST_FILE)):
        if given := [f"--{name.replace('_', '-')}" for name in OPTIONS if getattr(args, name)]:
            raise InputError(f"{', '.join(given)}: for pictures only; feature shards have their own weights")
        return ShardCaptions(args.source), {"source": args.source}
    return open_named(args, args.source)


def check_arguments(args: argparse.Namespace) -> None:
    check_share(args)
    if args.process_count > 1 and not args.out:
        raise InputError("--process-count: processes share their work in a folder; name it by --out")
    check_counts(args, ("items_per_unit", "num_threads", "caption"))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("concepts"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        type=name_argument,
        metavar="SOURCE",
        help="pictures, as of extraction (docs/data.md), or feature shards",
    )
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="for the result; must not exist")
    parser.add_argument(
        "--tagger", choices=TAGGERS, default="nltk", help="what finds nouns (default: %(default)s, as in the paper)"
    )
    parser.add_argument("--lower-case", action="store_true", help='"Dog" and "dog" are one noun')
    parser.add_argument(
        "--caption", type=int, metavar="NUMBER", help="count each picture's caption of this number only"
    )
    add_picture_options(parser)
    parser.add_argument(
        "--items-per-unit", type=int, default=10_000, help="what a kill can cost at most (default: %(default)s)"
    )
    add_share(parser).add_argument("--num-threads", type=int, default=os.cpu_count() or 1, help="that read")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
