"""T2I-CompBench: how well pictures hold what their prompts say, in the six categories of the papers' table.

python -m tools.evaluate --suite compbench --checkpoint weights/alpha-512 --compbench T2I-CompBench/examples/dataset \\
    --blip blip-vqa-capfilt-large --clip clip-vit-base-patch32 --detector detr-resnet-50 --out results/compbench
python -m tools.evaluate --suite compbench PICTURES --compbench T2I-CompBench/examples/dataset --categories color \\
    --blip blip-vqa-capfilt-large --out results/color
python -m tools.evaluate --suite compbench --compare results/compbench/result.json results/color/result.json

It draws ten pictures of each prompt into OUT/CATEGORY/samples, as the benchmark's own scripts do, and scores those; or
scores PICTURES/CATEGORY/samples. With --checkpoint and no network that scores, it draws alone. Scores that the
benchmark's scripts have written beside the pictures are taken as they are where no network is given for them. The same
command goes on where a killed one stopped. Several processes share the work if each is given its --process-index of
--process-count. See docs/compbench.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence

from pixart_jax.commands import command, path_argument, quieten_libraries, with_commands
from pixart_jax.errors import InputError
from pixart_jax.evaluators.compbench.detections import OWN_DETECTORS
from pixart_jax.evaluators.compbench.layout import CATEGORIES, SIX, Pictures, open_pictures, seed_of
from pixart_jax.evaluators.compbench.report import compare, table
from pixart_jax.evaluators.compbench.sources import Networks, open_parts
from pixart_jax.evaluators.compbench.suite import Part, Relations, finish
from pixart_jax.files import check_writable, write_atomically
from pixart_jax.files.locks import hold_share
from pixart_jax.files.unit_work import Tally
from pixart_jax.generation.picture_lists import Wanted, draw_list
from pixart_jax.generation.request import Progress, Request
from pixart_jax.samplers import SAMPLERS

from ..drawing_options import OF_MODELS, add_model_options, as_typed, open_pipeline, read_adapters
from ..shares import ProgressLines
from .drawing import DrawingLines
from .options import add_work_options, as_options, check_compare

# Options that only pictures to be drawn have, by their names in the parsed arguments.
OF_DRAWING = ("sampler", "num_steps", "guidance_scale", "size", "draw_batch_size", *OF_MODELS)


def arguments_of(argv: Sequence[str]) -> list[str] | None:
    """What stands beside `--suite compbench`, or None where that is not asked for."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", choices=("compbench",))
    known, others = parser.parse_known_args(argv)
    return others if known.suite else None


def main(argv: Sequence[str]) -> int:
    quieten_libraries()
    args = parse_arguments(argv)
    if args.compare:
        print(compare(*args.compare))
        return 0
    return evaluate(args)


@as_typed(batch_size="draw_batch_size")
def evaluate(args: argparse.Namespace) -> int:
    check_arguments(args)
    pictures = open_pictures(args.out if args.checkpoint else args.pictures, args.categories, args.compbench)
    if not args.checkpoint:
        for category in pictures.values():
            category.check()
    check_heeded(args)
    networks = Networks(args.blip, args.clip, args.detector, tuple(args.detections), args.batch_size, args.num_threads)
    draws_only = bool(args.checkpoint) and not networks.any
    locks = args.out / ".locks"
    check_writable(locks, "--out")
    relations = Relations.read(args.compbench) if "complex" in pictures and not draws_only else None
    parts = [] if draws_only else open_parts(pictures, args.compbench, networks)
    locks.mkdir(parents=True, exist_ok=True)
    with hold_share(locks, args.process_index, args.process_count, f"--out {args.out}"):
        if args.checkpoint:
            draw(args, pictures)
        if draws_only:
            print(f"{args.out}: this process's share is drawn; name --blip, --clip and a detector to score it")
            return 0
        return score(args, parts, relations)


def draw(args: argparse.Namespace, pictures: Mapping[str, Pictures]) -> None:
    """This process's share of the pictures, a category after the other."""
    adapters = read_adapters(args, 1)
    pipeline = open_pipeline(args, adapters)
    request = Request(
        "",
        sampler=args.sampler,
        num_steps=args.num_steps,
        guidance_scale=args.guidance_scale,
        size=args.size,
        batch_size=args.draw_batch_size,
    )
    for name, category in pictures.items():
        wanted = [
            Wanted(f"samples/{category.name(row)}", category.prompt(row), seed_of(row)) for row in range(len(category))
        ]
        # Units are scored by the process that has drawn them.
        draw_list(
            pipeline,
            wanted,
            category.folder,
            request,
            process_index=args.process_index,
            process_count=args.process_count,
            per_group=args.pictures_per_unit,
            about=adapters.about(),
            progress=drawing_progress(name),
        )


def drawing_progress(name: str) -> Progress:
    """Says within a group what is being done, and after each how long all will take."""
    lines, stages = ProgressLines(f"{name}, drawn: "), DrawingLines(name)

    def report(stage: str, done: int, total: int) -> None:
        if stage == "drawn":
            lines(Tally(0, 0, done, total, None))
        else:
            stages(stage, done, total)

    return report


def score(args: argparse.Namespace, parts: Sequence[Part], relations: Relations | None) -> int:
    """This process's share; where it is the last one, the figures too."""
    size = args.pictures_per_unit
    for part in parts:
        part.judge_share(args.out, size, args.process_index, args.process_count, args.num_threads, progress(part, args))
    found = finish(args.out, parts, relations, size)
    if found is None:
        print(f"{args.out}: this process's share is done; the one that ends last adds up", flush=True)
        return 0
    result, skipped = found
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    names = ("jax", "numpy", "pillow", "spacy", "torch", "transformers")
    result["versions"] = {name: importlib.metadata.version(name) for name in names if name in installed}
    write_text(args, "skipped.txt", "".join(f"{line}\n" for line in skipped))
    write_text(args, "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_text(args, "result.md", table(result) + "\n")
    print(table(result))
    if skipped:
        print(f"{len(skipped)} pictures could not be read, see {args.out / 'skipped.txt'}")
    return 0


def progress(part: Part, args: argparse.Namespace) -> Callable[[int], None]:
    lines = ProgressLines(f"{part.pictures.category}, {part.score}: ")
    share = part.share(args.pictures_per_unit, args.process_index, args.process_count)
    return lambda done: lines(Tally(0, 0, done, share, None))


def write_text(args: argparse.Namespace, name: str, text: str) -> None:
    write_atomically(args.out / name, lambda file: file.write(text.encode()))


def check_arguments(args: argparse.Namespace) -> None:
    if not (args.compbench and args.out):
        raise InputError("--compbench and --out are needed: the benchmark's prompts, and a folder for what is found")
    if bool(args.checkpoint) == bool(args.pictures):
        raise InputError("name either PICTURES, a folder that holds them, or --checkpoint, which draws them")
    if not 0 <= args.process_index < args.process_count:
        raise InputError(f"--process-index {args.process_index} of --process-count {args.process_count}: count from 0")
    for name in ("batch_size", "draw_batch_size", "num_threads", "pictures_per_unit"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: is too small")


def check_heeded(args: argparse.Namespace) -> None:
    """Raises InputError for how to draw where nothing is drawn, and for networks that no category needs."""
    default = make_parser().get_default
    if args.pictures and (given := [name for name in OF_DRAWING if getattr(args, name) != default(name)]):
        raise InputError(f"{as_options(given)}: say how pictures are drawn; name a --checkpoint, or leave it out")
    needed = {score for category in args.categories for score in CATEGORIES[category]}
    for name, scores in (("blip", {"blip"}), ("clip", {"clip"}), ("detector", set(OWN_DETECTORS))):
        if getattr(args, name) and not scores & needed:
            raise InputError(f"--{name}: none of --categories {' '.join(args.categories)} needs it; leave it out")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_compare(parser, args)
    return args


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{command('evaluate')} --suite compbench",
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="?", type=path_argument, help="a folder with one for each category")
    parser.add_argument("--compbench", type=path_argument, metavar="DIR", help="examples/dataset of its repository")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=SIX, help="(default: the six of v1)")
    parser.add_argument("--out", type=path_argument, metavar="DIR")
    parser.add_argument("--compare", nargs=2, type=path_argument, metavar="RESULT", help="two results side by side")

    networks = parser.add_argument_group("networks")
    networks.add_argument("--blip", type=path_argument, metavar="DIR", help="BLIP-VQA, as transformers writes it")
    networks.add_argument("--clip", type=path_argument, metavar="DIR", help="CLIP ViT-B/32")
    networks.add_argument(
        "--detections",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="FILE.json",
        help="of the benchmark's detector",
    )
    networks.add_argument(
        "--detector", type=path_argument, metavar="DIR", help="an object detector of transformers, which is not its own"
    )

    drawing = parser.add_argument_group("drawing")
    drawing.add_argument("--checkpoint", type=path_argument, metavar="DIR", help="what draws; as of tools.sample")
    drawing.add_argument("--sampler", choices=SAMPLERS, help="default: the model's")
    drawing.add_argument("--num-steps", type=int, help="default: 20, or the run's")
    drawing.add_argument("--guidance-scale", type=float, help="default: 4.5, or the run's")
    drawing.add_argument("--size", type=int, help="pixels along a side (default: the model's)")
    drawing.add_argument("--draw-batch-size", type=int, default=4, help="(default: %(default)s)")

    add_model_options(parser)
    add_work_options(parser)
    return parser
