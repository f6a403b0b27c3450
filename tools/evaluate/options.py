"""The command line of an evaluation, and what is wrong with one."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Iterable, Sequence

from pixart_jax.commands import command, path_argument, seed_argument, text_argument, with_commands
from pixart_jax.errors import InputError
from pixart_jax.evaluators.clip_figures import CLIP_SCORE, CMMD, OF_CLIP
from pixart_jax.evaluators.clip_preprocessing import CLIP_PREPROCESSINGS, CMMD_PREPROCESSINGS
from pixart_jax.evaluators.feature_networks import NETWORKS
from pixart_jax.evaluators.measures import OF_BOTH, OF_FEATURES, RETRIEVAL
from pixart_jax.evaluators.preprocessing import PREPROCESSINGS
from pixart_jax.files import check_writable
from pixart_jax.samplers import SAMPLERS

from ..drawing_options import OF_CONTROL, OF_MODELS, add_control_options, add_model_options
from ..shares import add_share, check_share

METRICS = (*OF_FEATURES, *OF_CLIP, RETRIEVAL)
# Options that only pictures to be drawn have, by their names in the parsed arguments.
OF_DRAWING = (
    "prompts", "prompts_from", "num_pictures", "negative_prompt", "seed", "size", "aspect_ratio", "sampler",
    "num_steps", "guidance_scale", "draw_batch_size", "keep_pictures", *OF_CONTROL, *(set(OF_MODELS) - {"vae"}),
)  # fmt: skip
# Likewise, with the metrics that have them.
HEEDED_BY = (
    (OF_FEATURES, ("network", "weights", "inception", "preprocessing")),
    (("kid",), ("kid_subset_size",)),
    (OF_CLIP, ("clip",)),
    ((CLIP_SCORE,), ("clip_preprocessing",)),
    ((CMMD,), ("cmmd_preprocessing",)),
    (("fid", *OF_BOTH, CMMD), ("reference",)),
)


def parse_arguments(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """What was asked for; ends the process, as argparse does, where it is no command line."""
    parser = make_parser(description)
    args = parser.parse_args(argv)
    check_compare(parser, args)
    if not args.compare:
        check_arguments(args)
        args.weights = args.weights or args.inception
    return args


def check_compare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raises InputError where `--compare` stands beside what it does not heed."""
    others = {name: value for name, value in vars(args).items() if name != "compare"}
    if args.compare and (given := [name for name, value in others.items() if value != parser.get_default(name)]):
        options = ", ".join("PICTURES" if name == "pictures" else f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--compare sets two results beside each other, and does not heed {options}; leave that out")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises InputError for what does not go together, before anything is opened."""
    if bool(args.pictures) == bool(args.checkpoint):
        raise InputError("name PICTURES to measure, or a --checkpoint that draws them, one of the two")
    if not args.out:
        raise InputError("--out is missing: a folder for the result and the features")
    for what, given in (("PICTURES", args.pictures), ("--reference", args.reference)):
        if given and pathlib.Path(given).is_dir() and pathlib.Path(given).resolve() == args.out.resolve():
            raise InputError(
                f"--out {args.out} is the folder of {what}, and what is written would be among them; name another"
            )
    if args.inception and args.network != NETWORKS[0]:
        raise InputError(f"--inception names FID-Inception's weights: name those of {args.network} by --weights")
    if not (args.weights or args.inception) and (args.statistics or set(args.metrics) & set(OF_FEATURES)):
        raise InputError(f"--weights is missing: a file of weights of {args.network}")
    if "is" in args.metrics and args.network != NETWORKS[0]:
        raise InputError(f"--metrics is: an Inception Score is of {NETWORKS[0]}'s classes; name it as --network")
    _check_clip(args)
    _check_drawing(args)
    _check_reference(args)
    _check_heeded(args)
    check_share(args)
    for name in ("batch_size", "draw_batch_size", "num_threads", "kid_subset_size", "pictures_per_unit"):
        if getattr(args, name) < 1 + (name == "kid_subset_size"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: is too small")


def _check_clip(args: argparse.Namespace) -> None:
    if (wanting := sorted(set(args.metrics) & set(OF_CLIP))) and not args.clip:
        raise InputError(f"--clip is missing, which --metrics {' '.join(wanting)} need: the folder of a CLIP")
    if args.captions and (args.checkpoint or CLIP_SCORE not in args.metrics):
        raise InputError("--captions says what PICTURES show, for --metrics clip_score; leave it out")


def _check_drawing(args: argparse.Namespace) -> None:
    if not args.checkpoint:
        default = make_parser(None).get_default
        if given := [name for name in OF_DRAWING if getattr(args, name) != default(name)]:
            raise InputError(f"{as_options(given)}: say how pictures are drawn; name a --checkpoint, or leave it out")
    elif not args.prompts and not args.prompts_from:
        raise InputError("--checkpoint draws prompts: name a file of them (--prompts), or a data set (--prompts-from)")
    if RETRIEVAL in args.metrics and not args.prompts_from:
        raise InputError("--metrics retrieval needs the pictures that captions belong to: name --prompts-from DIR")


def _check_reference(args: argparse.Namespace) -> None:
    if args.statistics and (args.reference or args.checkpoint):
        raise InputError(
            "--statistics makes a reference of PICTURES; leave --reference out"
            if args.reference
            else "--statistics makes a reference of PICTURES, not of what a --checkpoint draws"
        )
    if args.statistics:
        if not is_statistics(str(args.statistics)):
            raise InputError(f"--statistics {args.statistics}: call it .npz, by which --reference knows it")
        if args.statistics.is_dir():
            raise InputError(f"--statistics {args.statistics} is a folder; name a file")
        check_writable(args.statistics.parent, f"--statistics {args.statistics}: the folder")
        return
    wanting = sorted(set(args.metrics) & {"fid", CMMD, *OF_BOTH})
    if wanting and not args.reference:
        raise InputError(
            f"--reference is missing, which --metrics {' '.join(wanting)} need: a folder of pictures, feature shards, "
            "tfds:NAME, or a .npz of statistics"
        )
    if is_statistics(args.reference) and (more := sorted(set(args.metrics) & {CMMD, *OF_BOTH})):
        raise InputError(
            f"--metrics {' '.join(more)} need the reference's pictures, and {args.reference} holds mean and covariance "
            "only; name their folder"
        )
    if is_statistics(args.reference) and not set(args.metrics) & set(OF_FEATURES):
        raise InputError(f"--reference {args.reference}: no one of --metrics looks at statistics; leave it out")


def _check_heeded(args: argparse.Namespace) -> None:
    """Raises InputError for what only other metrics would heed."""
    default = make_parser(None).get_default

    def given_of(names: Iterable[str]) -> list[str]:
        return [name for name in names if getattr(args, name) != default(name)]

    if args.statistics:
        of_figures = [name for heeding, names in HEEDED_BY if heeding != OF_FEATURES for name in names]
        if given := given_of(["metrics", *of_figures]):
            raise InputError(
                f"{as_options(given)}: --statistics writes mean and covariance, of which figures are made later; leave "
                "it out"
            )
        return
    for heeding, names in HEEDED_BY:
        if (given := given_of(names)) and not set(heeding) & set(args.metrics):
            raise InputError(
                f"{as_options(given)}: of --metrics {', '.join(heeding)}, and none of them is asked for; add one, or "
                "leave it out"
            )


def as_options(names: Iterable[str]) -> str:
    """Names in the parsed arguments as they are given."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def is_statistics(reference: str | None) -> bool:
    return reference is not None and reference.lower().endswith(".npz")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command("evaluate"),
        description=description and with_commands(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = "a folder, at any depth; feature shards; tfds:NAME; a list or .tar as of tools.extract_features"
    parser.add_argument("pictures", nargs="?", type=source_argument, help=sources)
    parser.add_argument("--reference", type=source_argument, metavar="REAL", help="the same, or a .npz of mu and sigma")
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help="whose features are measured; what is not FID-Inception's is not called FID (default: %(default)s)",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=path_argument, metavar="FILE", help="of --network")
    weights.add_argument("--inception", type=path_argument, metavar="FILE", help="the same, of FID-Inception")
    parser.add_argument(
        "--out", type=path_argument, metavar="DIR", help="for the result, the features and what is left"
    )
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["fid"], help="(default: fid)")
    parser.add_argument(
        "--preprocessing",
        choices=PREPROCESSINGS,
        default="",
        help="whose way to resize and scale, for FID-Inception (default: clean-fid)",
    )
    parser.add_argument("--kid-subset-size", type=int, default=1000, help="at most (default: %(default)s)")
    parser.add_argument("--statistics", type=path_argument, metavar="FILE.npz", help="write PICTURES' and stop")
    parser.add_argument("--compare", nargs=2, type=path_argument, metavar="RESULT", help="two results side by side")

    clip = parser.add_argument_group("CLIP", "of --metrics clip_score and cmmd")
    clip.add_argument("--clip", type=path_argument, metavar="DIR", help="as transformers saves it, or tools.convert")
    clip.add_argument(
        "--captions",
        type=path_argument,
        metavar="FILE.json",
        help="an object of PICTURES' names to captions (default: their captions.json, or a .txt beside each)",
    )
    clip.add_argument(
        "--clip-preprocessing",
        choices=CLIP_PREPROCESSINGS,
        default=CLIP_PREPROCESSINGS[0],
        help="of clip_score (default: %(default)s)",
    )
    clip.add_argument(
        "--cmmd-preprocessing",
        choices=CMMD_PREPROCESSINGS,
        default=CMMD_PREPROCESSINGS[0],
        help="of cmmd (default: %(default)s)",
    )

    drawing = parser.add_argument_group("drawing", "pictures of a model, in place of PICTURES")
    drawing.add_argument(
        "--checkpoint", type=path_argument, metavar="DIR", help="what tools.convert wrote, or the workdir of a run"
    )
    prompts = drawing.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        type=path_argument,
        metavar="FILE",
        help="text, or .json of COCO's captions or MJHQ-30K",
    )
    prompts.add_argument("--prompts-from", type=path_argument, metavar="DIR", help="feature shards, for their captions")
    drawing.add_argument("--num-pictures", type=int, metavar="N", help="of that many of the prompts (default: of all)")
    drawing.add_argument(
        "--guidance-scale", type=float, nargs="+", metavar="X", help="several give a curve (default: 4.5, or the run's)"
    )
    drawing.add_argument("--negative-prompt", type=text_argument, help="default: the model's null caption")
    drawing.add_argument("--sampler", choices=SAMPLERS, help="default: the model's")
    drawing.add_argument("--num-steps", type=int, help="default: 20, or the run's")
    drawing.add_argument("--size", type=int, help="pixels along a side of the square (default: the model's)")
    drawing.add_argument("--aspect-ratio", metavar="WIDTH:HEIGHT", help="such as 16:9 (default: 1:1)")
    drawing.add_argument("--seed", type=seed_argument, default=0, help="of which each picture has one of its own")
    drawing.add_argument("--draw-batch-size", type=int, default=4, help="pictures at a time (default: %(default)s)")
    drawing.add_argument(
        "--keep-pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in OUT/pictures, or remove each once it has been looked at",
    )

    add_control_options(parser)
    add_model_options(parser)
    add_work_options(parser)
    return parser


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """How pictures are looked at, and how processes share that."""
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=32, help="pictures looked at at a time (default: %(default)s)")
    work.add_argument(
        "--pictures-per-unit", type=int, default=256, help="what a kill can cost at most (default: %(default)s)"
    )
    work.add_argument("--num-threads", type=int, default=os.cpu_count() or 1, help="that read and decode")
    add_share(parser)


def source_argument(text: str) -> str:
    """The `type` of an argument that names pictures: a path, or tfds:NAME."""
    return text if text.startswith("tfds:") else str(path_argument(text))
