"""How far pictures are from real ones, and what they show: FID and its relatives, with all that the figures depend on.

python -m tools.evaluate PICTURES --reference REAL --inception pt_inception-2015-12-05-6726825d.pth --out results/mine
python -m tools.evaluate PICTURES --reference coco.npz --inception FILE.pth --preprocessing pytorch-fid --out results/b
python -m tools.evaluate REAL --inception FILE.pth --statistics coco.npz --out results/coco  # a reference, for later
python -m tools.evaluate PICTURES --reference REAL --network efficientnet-lite0 --weights FILE.pth --out results/d
python -m tools.evaluate --checkpoint weights/sigma-512 --prompts captions_val2014.json --num-pictures 30000 \\
    --guidance-scale 1.5 2 3 4 5 6 --reference coco.npz --inception FILE.pth --out results/curve
python -m tools.evaluate PICTURES --metrics clip_score cmmd --clip clip-vit-large-patch14-336/ --reference REAL --out D
python -m tools.evaluate --compare results/mine/result.json results/b/result.json
python -m tools.evaluate --suite compbench --help  # T2I-CompBench, which has options of its own

--out keeps the features: the same command goes on where a killed one stopped, and other --metrics cost no second look
at the pictures. Several processes share the work if each is given its --process-index of --process-count.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixart_jax.commands import GOES_ON, quieten_libraries, tool
from pixart_jax.encoding.shard_decoder import shard_decoder
from pixart_jax.errors import InputError
from pixart_jax.evaluators.captions import CaptionSet
from pixart_jax.evaluators.clip_figures import CAPTIONS, CMMD
from pixart_jax.evaluators.distances import statistics_of
from pixart_jax.evaluators.evaluation import Evaluation, Side, write_text
from pixart_jax.evaluators.feature_networks import open_network
from pixart_jax.evaluators.measures import OF_FEATURES, RETRIEVAL, feature_figures, retrieval_figure
from pixart_jax.evaluators.networks import FEATURES, FeatureNetwork
from pixart_jax.evaluators.picture_sets import PictureSet, SetFeatures
from pixart_jax.evaluators.picture_sources import ShardPictures, open_picture_set
from pixart_jax.evaluators.pixel_network import pixel_network
from pixart_jax.evaluators.references import Reference, read_statistics, write_statistics
from pixart_jax.evaluators.results import about_reference, about_set, compare, make_result, table, write_curve
from pixart_jax.files import check_writable
from pixart_jax.files.locks import hold_share
from pixart_jax.files.unit_work import Tally
from pixart_jax.generation.drawn_pictures import DrawnPictures

from ..drawing_options import as_typed
from ..shares import ProgressLines
from . import clip, compbench
from .drawing import Prompts, open_drawings, read_prompts
from .options import is_statistics, parse_arguments

# What networks are for, and what sides are called that are not measured themselves.
DISTANCES, PIXELS = "distances", "pixels"
REFERENCE, GALLERY = "reference", "gallery"


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if (suite := compbench.arguments_of(argv)) is not None:
        return compbench.main(suite)
    args = parse_arguments(argv, __doc__)
    if args.compare:
        print(compare(*args.compare))
        return 0
    quieten_libraries()
    return evaluate(args)


@as_typed(batch_size="draw_batch_size")
def evaluate(args: argparse.Namespace) -> int:
    """Opens, and so refuses, everything before anything is drawn or looked at."""
    networks = open_networks(args)
    prompts = read_prompts(args) if args.checkpoint else None
    reference: Reference | None = None
    others: dict[str, PictureSet] = {}
    if is_statistics(args.reference):
        reference = read_statistics(pathlib.Path(args.reference), networks[DISTANCES])
    elif args.reference:
        others[REFERENCE] = open_set(args, args.reference, "the reference")
    gallery = ""
    if RETRIEVAL in args.metrics:
        gallery = REFERENCE if args.reference == str(args.prompts_from) else GALLERY
        others.setdefault(gallery, open_set(args, str(args.prompts_from), "the gallery"))
    measured: Mapping[str, PictureSet]
    if prompts:
        measured = open_drawings(args, prompts)
    else:
        measured = {"pictures": open_set(args, args.pictures, "PICTURES")}
    check_vae(args, [*measured.values(), *others.values()])
    captions = clip.open_captions(args, measured, prompts)
    of_pictures = {purpose: network for purpose, network in networks.items() if purpose != CAPTIONS}
    sides = {name: Side(pictures, of_pictures) for name, pictures in measured.items()}
    for name, pictures in others.items():
        needed = {DISTANCES: name == REFERENCE, CMMD: name == REFERENCE, PIXELS: name == gallery}
        looking = {purpose: network for purpose, network in networks.items() if needed.get(purpose)}
        if looking:
            sides[name] = Side(pictures, looking)
    if captions:
        # Before the pictures: what is wrong with a caption is said before any is drawn.
        sides = {CAPTIONS: Side(captions, {CAPTIONS: networks[CAPTIONS]})} | sides
    locks = args.out / ".locks"
    check_writable(locks, "--out")
    locks.mkdir(parents=True, exist_ok=True)
    with hold_share(locks, args.process_index, args.process_count, f"--out {args.out}"):
        found = look(args, Evaluation(args.out, sides), measured)
        if found is None:
            print(f"{args.out}: this process's share is done; the one that ends last measures", flush=True)
        elif args.statistics:
            write_reference(args.statistics, measured["pictures"], networks[DISTANCES], found["pictures"][DISTANCES])
        else:
            results = measure(args, measured, others, reference, networks, found, prompts, gallery, captions)
            write_results(args.out, results)
    return 0


def open_networks(args: argparse.Namespace) -> dict[str, FeatureNetwork]:
    """Those that the metrics need, by what they are for."""
    networks = {}
    if args.statistics or set(args.metrics) & set(OF_FEATURES):
        networks[DISTANCES] = open_network(args.network, args.weights, args.preprocessing)
    if RETRIEVAL in args.metrics:
        networks[PIXELS] = pixel_network()
    return networks | clip.open_networks(args)


def open_set(args: argparse.Namespace, spec: str, what: str) -> PictureSet:
    """Raises InputError if there is no such set, or no two pictures in it."""
    beside = args.checkpoint / "vae" if args.checkpoint else None
    vae = args.vae or (beside if beside and beside.is_dir() else None)
    found = open_picture_set(spec, args.pictures_per_unit, lambda samples: shard_decoder(spec, samples.manifest, vae))
    if len(found) < 2:
        raise InputError(f"{spec}: {what} must hold two pictures or more, of which metrics are made")
    return found


def check_vae(args: argparse.Namespace, sets: Sequence[PictureSet]) -> None:
    """Raises InputError for a --vae that decodes neither latents of a set nor what is drawn."""
    shards = [pictures.samples.manifest for pictures in sets if isinstance(pictures, ShardPictures)]
    if args.vae and not args.checkpoint and all(manifest.autoencoder == "linear" for manifest in shards):
        raise InputError(
            f"--vae {args.vae}: decodes feature shards that have no linear autoencoder of their own, and none is "
            "named; leave it out"
        )


def look(
    args: argparse.Namespace, evaluation: Evaluation, measured: Mapping[str, PictureSet]
) -> dict[str, dict[str, SetFeatures]] | None:
    """This process's share; the features of all, where it is the last one."""
    evaluation.begin()
    for pictures in measured.values():
        if isinstance(pictures, DrawnPictures):
            pictures.drawing.begin()
    evaluation.look(
        batch_size=args.batch_size,
        num_threads=args.num_threads,
        process_index=args.process_index,
        process_count=args.process_count,
        progress=progress,
    )
    found = evaluation.found()
    for line in evaluation.write_skipped(found) if found else []:
        print(line)
    for name, by_purpose in (found or {}).items():
        for features in by_purpose.values():
            if name != CAPTIONS and len(features.read) < 2:
                raise InputError(
                    f"{evaluation.sides[name].pictures.path}: {len(features.read)} of its pictures could be read, and "
                    f"metrics are made of two or more; see {args.out / 'skipped.txt'}, and name another"
                )
    return found


def progress(side: str, total: int) -> Callable[[int], None]:
    lines = ProgressLines(f"{side}: ")
    return lambda done: lines(Tally(0, 0, done, total, None))


def write_reference(path: pathlib.Path, pictures: PictureSet, network: FeatureNetwork, found: SetFeatures) -> None:
    statistics = statistics_of([found.features], network.outputs[FEATURES])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(path, statistics, pictures.fingerprint, network)
    print(f"{path}: statistics of {statistics.count} pictures")


def measure(
    args: argparse.Namespace,
    measured: Mapping[str, PictureSet],
    others: Mapping[str, PictureSet],
    reference: Reference | None,
    networks: Mapping[str, FeatureNetwork],
    found: Mapping[str, Mapping[str, SetFeatures]],
    prompts: Prompts | None,
    gallery: str,
    captions: CaptionSet | None,
) -> dict[str, dict[str, Any]]:
    """The result of each set that is measured."""
    results = {}
    against: Reference | SetFeatures | None = reference
    of_reference = found.get(REFERENCE, {})
    if REFERENCE in others:
        against = of_reference.get(DISTANCES)
    for name, pictures in measured.items():
        figures: dict[str, float] = {}
        subset = None
        if DISTANCES in networks:
            figures, subset = feature_figures(
                args.metrics, networks[DISTANCES], found[name][DISTANCES], against, args.kid_subset_size
            )
        if prompts and PIXELS in networks:
            figures |= retrieval_figure(found[name][PIXELS], found[gallery][PIXELS], prompts.places)
        of_clip, about_clip = clip.measure(
            args,
            args.out / ("clip_scores.json" if len(measured) == 1 else f"{name}-clip_scores.json"),
            pictures,
            captions,
            networks,
            found[name],
            found.get(CAPTIONS, {}).get(CAPTIONS),
            of_reference.get(CMMD),
        )
        drawn = None
        if prompts and isinstance(pictures, DrawnPictures):
            drawn = {**pictures.drawing.recipe, "prompts": prompts.about, "kept": args.keep_pictures}
        results[name] = make_result(
            figures | of_clip,
            networks=networks,
            kid_subset_size=subset,
            pictures=about_set(pictures, next(iter(found[name].values()))),
            reference=about_reference(
                reference, others.get(REFERENCE), of_reference.get(DISTANCES) or of_reference.get(CMMD)
            ),
            gallery=about_set(others[gallery], found[gallery][PIXELS]) if gallery else None,
            drawn=drawn,
        )
        results[name] |= about_clip
    return results


def write_results(out: pathlib.Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """result.json and .md of one, or one each and the curve of several."""
    for name, result in results.items():
        file = "result" if len(results) == 1 else name
        write_text(out / f"{file}.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        write_text(out / f"{file}.md", table([result]) + "\n")
    if len(results) > 1:
        write_curve(out, [*results.values()])
    print(table([*results.values()]))
