"""Pairs of noises and what a teacher draws of them, on which distribution matching distillation holds its student.

python -m tools.teacher_pairs --checkpoint weights/alpha-512 --source data/512px --out data/pairs_512 --num-pairs 100000

The captions, and the sizes, are those of feature shards; pair i has the i-th caption, and noise i of the seed. DIR is
for --config.data.pair_source. The same command goes on where a killed one stopped; several processes share the work if
each is given its --process-index of --process-count.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time
import zlib
from collections.abc import Sequence

from pixart_jax.commands import GOES_ON, command, path_argument, quieten_libraries, seed_argument, tool, with_commands
from pixart_jax.data.pipeline import check_sources
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import manifest_text
from pixart_jax.encoding.engine import extract
from pixart_jax.encoding.registry import copy_encoder_files
from pixart_jax.files import check_writable
from pixart_jax.generation.picture_lists import weights_checksum
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.generation.teacher_pairs import TeacherPairs, spec_of
from pixart_jax.training.metrics import format_duration

from .drawing_options import add_manner_options, as_typed
from .shares import add_share, check_counts, check_share, share_of


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    begin = time.perf_counter()
    finished = draw(args)
    seconds = format_duration(time.perf_counter() - begin)
    if finished:
        print(f"{args.out}: {args.num_pairs} pairs; done in {seconds}")
    else:
        print(f"this process's share is done in {seconds}; the set is complete when the others are done too")
    return 0


@as_typed()
def draw(args: argparse.Namespace) -> bool:
    """Whether all pairs are there; raises InputError for what cannot work, before anything is drawn."""
    check_share(args)
    check_counts(args, ("num_pairs", "batch_size", "pairs_per_shard", "num_steps"))
    check_writable(args.out, "--out")
    settings = {name: getattr(args, name) for name in ("sampler", "num_steps", "guidance_scale")}
    pipeline = TextToImage.from_checkpoint(
        args.checkpoint, text_encoder=args.text_encoder, vae=args.vae, ema=args.ema, keep_loaded=True
    )
    parts, manner = pipeline.parts, pipeline.manner(Request("", **settings))
    (manifest,) = check_sources([(args.source, 1.0)], spec_of(parts, 1))
    units = TeacherPairs(
        ShardReader(args.source),
        manifest,
        parts,
        manner,
        num_pairs=args.num_pairs,
        seed=args.seed,
        batch_size=args.batch_size,
        about={
            "checkpoint": pathlib.Path(parts.name).absolute().name,
            "step": parts.step(),
            "weights": weights_checksum(pipeline),
            "captions": f"{zlib.crc32(json.dumps(manifest_text(manifest)).encode()):08x}",
        },
        items_per_unit=args.pairs_per_shard,
    )
    # The manifest names the source's encoders, which where they are its own are nowhere else.
    put_beside = functools.partial(copy_encoder_files, args.source, manifest)
    return extract(units, args.out, **share_of(args), put_beside=put_beside)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("teacher_pairs"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=path_argument, metavar="DIR", help="of the teacher")
    parser.add_argument("--source", required=True, type=path_argument, metavar="DIR", help="shards of the captions")
    parser.add_argument("--out", required=True, type=path_argument, metavar="DIR", help="must not exist")
    parser.add_argument("--num-pairs", type=int, required=True, help="of all processes together")
    parser.add_argument("--seed", type=seed_argument, default=0, help="of the noises (default: %(default)s)")
    add_manner_options(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: %(default)s)")
    parser.add_argument(
        "--pairs-per-shard", type=int, default=1024, help="what a kill can cost at most (default: %(default)s)"
    )
    add_share(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
