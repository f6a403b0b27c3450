"""How far a folder of pictures is from another: FID and its relatives, with everything that the figures depend on.

python -m tools.evaluate PICTURES --reference REAL --inception pt_inception-2015-12-05-6726825d.pth --out results/mine
python -m tools.evaluate PICTURES --reference coco.npz --inception FILE.pth --preprocessing pytorch-fid --out results/b
python -m tools.evaluate REAL --inception FILE.pth --statistics coco.npz --out results/coco  # a reference, for later
python -m tools.evaluate PICTURES --reference REAL --network efficientnet-lite0 --weights FILE.pth --out results/d
python -m tools.evaluate --compare results/mine/result.json results/b/result.json
python -m tools.evaluate --suite compbench --help  # T2I-CompBench, which has options of its own

--out keeps the features: the same command goes on where a killed one stopped, and other --metrics cost no second look
at the pictures. Several processes share the work if each is given its --process-index of --process-count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixart_jax.commands import GOES_ON, command, path_argument, tool, with_commands
from pixart_jax.errors import InputError
from pixart_jax.evaluators.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
    statistics_of,
)
from pixart_jax.evaluators.feature_networks import NETWORKS, frechet_name, kernel_name, open_network
from pixart_jax.evaluators.networks import FEATURES, LOGITS, FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureFolder, PictureReader, SetFeatures, extract, load
from pixart_jax.evaluators.preprocessing import PREPROCESSINGS
from pixart_jax.evaluators.references import Reference, read_statistics, write_statistics
from pixart_jax.evaluators.results import compare, table
from pixart_jax.files import check_writable, write_atomically
from pixart_jax.files.locks import hold_share
from pixart_jax.files.typed_json import read_fields

from ..extract_features import ProgressLines, Tally
from . import compbench

METRICS = ("fid", "kid", "is", "pr")


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if (suite := compbench.arguments_of(argv)) is not None:
        return compbench.main(suite)
    args = parse_arguments(argv)
    try:
        if args.compare:
            print(compare(*args.compare))
            return 0
        return evaluate(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def evaluate(args: argparse.Namespace) -> int:
    check_arguments(args)
    pictures = PictureFolder.open(args.pictures, args.pictures_per_unit)
    sides = {"pictures": pictures}
    reference: PictureFolder | Reference | None = None
    if args.reference and args.reference.suffix != ".npz":
        reference = sides["reference"] = PictureFolder.open(args.reference, args.pictures_per_unit)
    network = open_network(args.network, args.weights, args.preprocessing)
    if args.reference and args.reference.suffix == ".npz":
        reference = read_statistics(args.reference, network)
    locks = args.out / ".locks"
    check_writable(locks, "--out")
    locks.mkdir(parents=True, exist_ok=True)
    with hold_share(locks, args.process_index, args.process_count, f"--out {args.out}"):
        return evaluate_share(args, sides, reference, network)


def evaluate_share(
    args: argparse.Namespace,
    sides: Mapping[str, PictureFolder],
    reference: PictureFolder | Reference | None,
    network: FeatureNetwork,
) -> int:
    """This process's share; where it is the last one, the figures too."""
    begin(args.out, sides, network)
    pictures = sides["pictures"]
    reader = PictureReader(network, batch_size=args.batch_size, num_threads=args.num_threads)
    found: dict[str, SetFeatures] = {}
    for name, folder in sides.items():
        extract(
            folder,
            reader,
            args.out / name,
            process_index=args.process_index,
            process_count=args.process_count,
            report=progress(name, len(folder.files)),
        )
    for name, folder in sides.items():
        features = load(folder, network, args.out / name)
        if features is None:
            print(f"{args.out}: this process's share is done; the one that ends last measures", flush=True)
            return 0
        found[name] = features
    write_skipped(args.out, found)
    if reference is None:
        statistics = statistics_of([found["pictures"].features], network.outputs[FEATURES])
        write_statistics(args.statistics, statistics, pictures.fingerprint, network)
        print(f"{args.statistics}: statistics of {statistics.count} pictures")
        return 0
    result = measure(args, pictures, reference, network, found)
    write_text(args.out / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_text(args.out / "result.md", table([result]) + "\n")
    print(table([result]))
    return 0


def progress(side: str, total: int) -> Callable[[int], None]:
    lines = ProgressLines(f"{side}: ")
    return lambda done: lines(Tally(0, 0, done, total, 0))


def begin(out: pathlib.Path, sides: Mapping[str, PictureFolder], network: FeatureNetwork) -> None:
    """Says in the folder what its features are of; refuses one that holds those of something else."""
    recipe = {
        "network": network.sha256,
        "preprocessing": network.preprocessing,
        "pictures per unit": sides["pictures"].per_unit,
        **{name: folder.fingerprint for name, folder in sides.items()},
    }
    path = out / "recipe.json"
    if path.exists():
        begun = read_fields(path, f"remove {out}, or name another --out")
        if changed := sorted(name for name in recipe if begun.get(name, recipe[name]) != recipe[name]):
            raise InputError(f"{out} was begun with other {', '.join(changed)}; name another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(recipe, indent=2) + "\n")


def measure(
    args: argparse.Namespace,
    pictures: PictureFolder,
    reference: PictureFolder | Reference,
    network: FeatureNetwork,
    found: Mapping[str, SetFeatures],
) -> dict[str, Any]:
    """The figures, and all that they depend on."""
    generated = found["pictures"]
    figures: dict[str, float] = {}
    subset = None
    if isinstance(reference, Reference):
        second = reference.statistics
        against = {"path": str(reference.path), "used": second.count, "fingerprint": reference.fingerprint}
    else:
        real = found["reference"].features
        against = about(reference, found["reference"])
        if "kid" in args.metrics:
            subset = min(args.kid_subset_size, len(generated.features), len(real))
            name = kernel_name(network)
            figures[name], figures[f"{name}_std"] = kernel_distance(generated.features, real, subset_size=subset)
        if "pr" in args.metrics:
            figures["precision"], figures["recall"] = precision_and_recall(generated.features, real)
        if "fid" in args.metrics:
            second = statistics_of([real], network.outputs[FEATURES])
    if "fid" in args.metrics:
        figures[frechet_name(network)] = frechet_distance(
            statistics_of([generated.features], network.outputs[FEATURES]), second
        )
    if "is" in args.metrics:
        figures["inception_score"], figures["inception_score_std"] = inception_score(generated.outputs[LOGITS])
    return {
        "metrics": figures,
        "network": {"name": network.name, "sha256": network.sha256, "published": network.published},
        "preprocessing": network.preprocessing,
        "kid_subset_size": subset,
        "pictures": about(pictures, generated),
        "reference": against,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy", "pillow")},
    }


def about(folder: PictureFolder, found: SetFeatures) -> dict[str, Any]:
    return {
        "path": str(folder.root),
        "files": len(folder.files),
        "used": len(found.features),
        "skipped": len(found.skipped),
        "fingerprint": folder.fingerprint,
    }


def write_skipped(out: pathlib.Path, found: Mapping[str, SetFeatures]) -> None:
    """Lists what could not be read, and counts it on the terminal."""
    rows = [(side, line) for side, features in found.items() for line in features.skipped]
    write_text(out / "skipped.txt", "".join(f"{side}: {line}\n" for side, line in rows))
    for side, features in found.items():
        if features.skipped:
            total = len(features.skipped) + len(features.features)
            print(f"{side}: {len(features.skipped)} of {total} could not be read, see {out / 'skipped.txt'}")


def write_text(path: pathlib.Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def check_arguments(args: argparse.Namespace) -> None:
    if args.statistics and args.reference:
        raise InputError("--statistics makes a reference of PICTURES; leave --reference out")
    if not args.statistics and not args.reference:
        raise InputError("--reference is missing: a folder of pictures, or a .npz of statistics")
    if args.reference and args.reference.suffix == ".npz" and (more := set(args.metrics) & {"kid", "pr"}):
        raise InputError(
            f"--metrics {' '.join(sorted(more))} need the reference's pictures, and {args.reference} holds mean and "
            "covariance only; name their folder"
        )
    if "is" in args.metrics and args.network != "fid-inception":
        raise InputError("--metrics is: an Inception Score is of fid-inception's classes; name it as --network")
    if not 0 <= args.process_index < args.process_count:
        raise InputError(f"--process-index {args.process_index} of --process-count {args.process_count}: count from 0")
    for name in ("batch_size", "num_threads", "kid_subset_size", "pictures_per_unit"):
        if getattr(args, name) < 1 + (name == "kid_subset_size"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: is too small")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("evaluate"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="?", type=path_argument, help="a folder; pictures at any depth")
    parser.add_argument("--reference", type=path_argument, help="a folder, or a .npz of mu and sigma")
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="fid-inception",
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
    parser.add_argument("--compare", nargs=2, type=path_argument, metavar="RESULT", help="two result.json side by side")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time (default: %(default)s)")
    parser.add_argument(
        "--pictures-per-unit", type=int, default=256, help="what a kill can cost at most (default: %(default)s)"
    )
    parser.add_argument("--num-threads", type=int, default=os.cpu_count() or 1, help="that read and decode")
    parser.add_argument("--process-index", type=int, default=0)
    parser.add_argument("--process-count", type=int, default=1)
    args = parser.parse_args(argv)
    if args.inception and args.network != "fid-inception":
        parser.error(f"--inception names FID-Inception's weights: name those of {args.network} by --weights")
    args.weights = args.weights or args.inception
    if not args.compare and not (args.pictures and args.weights and args.out):
        parser.error("PICTURES, --weights or --inception, and --out are needed, or --compare")
    return args
