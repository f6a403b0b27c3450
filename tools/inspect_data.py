"""Looks at feature shards, or at pictures before they are encoded: are they whole, and what is in them?

python -m tools.inspect_data photos/                                  # any source of extraction, see docs/data.md
python -m tools.inspect_data data/quickstart
python -m tools.inspect_data data/train --vae weights/sigma-1024/vae --num-pictures 96 --out looks/train

Reads and checks every record or picture, prints figures and warnings, writes contact_sheet.png, and of shards
histograms.png. Exit status: 0 where all is whole, 1 where something is damaged or would be skipped, 2 where there is
nothing to look at.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from pixart_jax.commands import BEGINS_AGAIN, command, name_argument, path_argument, seed_argument, tool, with_commands
from pixart_jax.data.pictures import is_spelled_out
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import MANIFEST_FILE, Manifest, bucket_name, read_manifest
from pixart_jax.data.shards.records import Sample
from pixart_jax.data.shards.survey import Survey, survey_set, text_hash
from pixart_jax.encoding.registry import load_autoencoder
from pixart_jax.encoding.skipped import skipped_reasons
from pixart_jax.errors import InputError
from pixart_jax.figures.data_set import DataFigures, contact_sheet, data_png
from pixart_jax.figures.images import false_colour, save_png, to_uint8
from pixart_jax.files import check_writable, local_path
from pixart_jax.files.unit_work import SKIPPED_FILE
from pixart_jax.training.metrics import format_duration

from .picture_source import OPTIONS as PICTURE_OPTIONS
from .picture_source import add_picture_options
from .raw_pictures import inspect_pictures

OUT, SHEET_FILE, CHARTS_FILE = "inspection", "contact_sheet.png", "histograms.png"
# So many damages are named.
LISTED = 20
SECONDS_BETWEEN_REPORTS = 5.0
# Warnings start at these. A std further from 1 than this changes what the noise schedule means (0.18215 against
# 0.13025 is a factor of 1.4).
STD_RANGE, CUT_SHARE, REPEATED_SHARE, FEW_SAMPLES = (0.8, 1.25), 0.01, 0.1, 10


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    begin = time.perf_counter()
    if args.num_pictures < 1:
        raise InputError(f"--num-pictures {args.num_pictures} must be at least 1")
    if is_raw(args.source):
        if args.vae is not None:
            raise InputError(f"--vae {args.vae}: {args.source} is not encoded yet; leave --vae out")
        return inspect_pictures(args, args.out or pathlib.Path(OUT), ProgressLines("pictures"))
    if given := [f"--{name.replace('_', '-')}" for name in PICTURE_OPTIONS if getattr(args, name)]:
        raise InputError(f"{', '.join(given)}: for pictures that are not encoded; leave it out for feature shards")
    args.directory = local_path(args.source, "the path")
    out = args.out or args.directory / OUT
    manifest = read_manifest(args.directory)
    decode, how = load_decoder(args.directory, manifest, args.vae)
    check_writable(out, "--out")  # Now, rather than to fail after an hour of reading.
    survey = survey_set(args.directory, manifest, ProgressLines("records"))
    print("\n".join(report(args.directory, manifest, survey)))
    if survey.cells:
        heading = f"{args.directory.absolute().name}: {manifest.num_samples:,} samples"
        draw_sheet(args, manifest, survey, decode, f"{heading}; {how}", out / SHEET_FILE)
        data_png(out / CHARTS_FILE, heading, figures(manifest, survey))
        print(f"\npictures: {out / SHEET_FILE} ({how}), {out / CHARTS_FILE}")
    print(verdict(manifest, survey, time.perf_counter() - begin))
    return 1 if survey.problems else 0


def is_raw(source: str) -> bool:
    """Whether it is a source of pictures, and no set of feature shards."""
    is_folder = os.path.isdir(source) and not os.path.exists(os.path.join(source, MANIFEST_FILE))
    return is_spelled_out(source) or is_folder


class ProgressLines:
    """Prints every few seconds how fast it goes and when it will be done."""

    def __init__(self, what: str):
        self._what = what
        self._begin = self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._last < SECONDS_BETWEEN_REPORTS:
            return
        self._last, rate = now, done / (now - self._begin)
        left = format_duration((total - done) / rate)
        print(f"{done}/{total} {self._what}, {rate:.3g}/s, {left} to go", file=sys.stderr, flush=True)


# --- words


def report(directory: pathlib.Path, manifest: Manifest, survey: Survey) -> Iterator[str]:
    """The manifest, figures of what could be read, and warnings, as lines."""
    for name, value in dataclasses.asdict(manifest).items():
        if name == "shards":
            num_bytes = sum(shard.num_bytes for shard in manifest.shards)
            value = f"{len(manifest.shards):,} ({num_bytes / 1e6:,.1f} MB)"
        if name != "bucket_histogram":
            yield f"{name:20}{value}"
    if survey.cells:
        yield from figures_in_words(directory, manifest, survey)
    if (path := directory / SKIPPED_FILE).is_file():
        yield from ["", f"skipped when the set was made ({path})"]
        yield from (f"  {count:>10,}  {reason}" for reason, count in skipped_reasons(path).most_common())
    if lines := list(warnings(manifest, survey)):
        yield from ["", *(f"warning: {line}" for line in lines)]


def figures_in_words(directory: pathlib.Path, manifest: Manifest, survey: Survey) -> Iterator[str]:
    yield from ["", f"{'bucket (h×w px)':<18}{'h/w':>6}{'samples':>12}{'share':>9}"]
    total = survey.buckets.total()
    for size in sorted(survey.buckets, key=lambda size: (size[0] / size[1], size)):
        count = survey.buckets[size]
        yield f"{size[0]:>6}×{size[1]:<11}{manifest.aspect_ratio(size):>6.2f}{count:>12,}{count / total:>9.2%}"
    mean, std, noise = survey.latent_moments()
    yield from ["", f"{'latents × scale':<18}{'mean':>8}{'std':>8}{'std of the posterior alone':>30}"]
    for channel, values in enumerate(zip(mean, std, noise, strict=True)):
        yield f"  channel {channel:<8}{values[0]:>8.3f}{values[1]:>8.3f}{values[2]:>30.4f}"
    yield f"  {'all':<16}{mean.mean():>8.3f}{overall_std(survey):>8.3f}{np.sqrt(np.mean(noise**2)):>30.4f}"
    sizes = survey.record_bytes
    yield from ["", f"{'':<18}{'least':>12}{'median':>12}{'mean':>12}{'most':>12}"]
    yield spread("bytes per record", sizes)
    if len(survey.captions):
        lengths = np.repeat(*(np.array(column) for column in zip(*sorted(survey.lengths.items()), strict=True)))
        yield spread("caption tokens", lengths)
        per_picture = sorted(survey.captions_per_picture.items())
        yield ""
        yield "captions per picture: " + ", ".join(f"{n} of {count:,}" for n, count in per_picture)
        share, most, number = repeated_captions(survey)
        yield f"captions that another caption repeats or is repeated by: {share:.2%}"
        if most > 1:
            yield f"  most often, {most:,} times: {caption_of(directory, survey, number)!r:.120}"


def spread(name: str, values: np.ndarray) -> str:
    return f"{name:<18}{values.min():>12,}{np.median(values):>12,.0f}{values.mean():>12,.1f}{values.max():>12,}"


def warnings(manifest: Manifest, survey: Survey) -> Iterator[str]:
    """What training would suffer from, though nothing is damaged."""
    if not survey.cells:
        return
    low, high = STD_RANGE
    std = overall_std(survey)
    if not low <= std <= high:
        better = f" (a scale of {manifest.latent_scale / std:.5g} would give it)" if std else ""
        yield (
            f"latents times latent_scale {manifest.latent_scale:g} have std {std:.3f}, training wants about 1{better}: "
            "is it the autoencoder's scale?"
        )
    captions = len(survey.captions)
    cut = survey.lengths[manifest.max_text_tokens] / max(captions, 1)
    if cut >= CUT_SHARE:
        yield (
            f"{cut:.1%} of captions have all {manifest.max_text_tokens} tokens that max_text_tokens allows, so most of "
            "them are cut: their ends are never read"
        )
    if captions and (share := repeated_captions(survey)[0]) >= REPEATED_SHARE:
        yield f"{share:.1%} of captions are not unique: is a stock phrase among them?"
    if few := [size for size, count in survey.buckets.items() if count < FEW_SAMPLES]:
        names = ", ".join(map(bucket_name, sorted(few)[:10])) + (", ..." if len(few) > 10 else "")
        yield f"{len(few)} bucket(s) have fewer than {FEW_SAMPLES} samples, and show them again and again: {names}"


def overall_std(survey: Survey) -> float:
    """Root of the channels' mean variance."""
    return float(np.sqrt(np.mean(survey.latent_moments()[1] ** 2)))


def repeated_captions(survey: Survey) -> tuple[float, int, int]:
    """Share of captions that are not unique; how often the most frequent occurs, and the number of its sample."""
    _, first, counts = np.unique(survey.captions, return_index=True, return_counts=True)
    most = int(counts.argmax())
    return counts[counts > 1].sum() / len(survey.captions), int(counts[most]), int(first[most])


def caption_of(directory: pathlib.Path, survey: Survey, number: int) -> str:
    """Caption `number` of those surveyed."""
    sample = ShardReader(directory)[survey.captions_of[number]]
    return next(text.caption for text in sample.texts if text_hash(text.caption) == survey.captions[number])


def verdict(manifest: Manifest, survey: Survey, seconds: float) -> str:
    """The last lines: what is damaged, or that nothing is."""
    pace = f"{len(survey.keys):,} of {manifest.num_samples:,} records read in {format_duration(seconds)}"
    if not survey.problems:
        return f"\nwhole: {pace}"
    lines = [f"  {problem}" for problem in survey.problems[:LISTED]]
    if len(survey.problems) > LISTED:
        lines.append(f"  ... and {len(survey.problems) - LISTED} more")
    cure = "copy the files again from where the set was made, or encode it again"
    return "\n".join([f"\nDAMAGED: {len(survey.problems)} problem(s); {pace}; {cure}", *lines])


# --- pictures


def load_decoder(directory: pathlib.Path, manifest: Manifest, vae: pathlib.Path | None):
    """(what turns unscaled latents f32[n, h, w, C] into uint8[n, H, W, 3], or None; how the pictures are made)."""
    if manifest.autoencoder == "linear":
        if vae is not None:
            raise InputError(f"--vae {vae}: {directory} has a linear autoencoder of its own; leave --vae out")
        linear = load_autoencoder(directory, manifest)
        return lambda latents: to_uint8(linear.decode(latents)), "decoded by the set's linear autoencoder"
    if vae is None:
        return None, "latents in false colours (the first three channels): --vae would decode them"
    # Only here, because it takes seconds.
    from pixart_jax.encoding.pretrained import Autoencoder, local_mesh

    autoencoder = Autoencoder(vae, mesh=local_mesh(), keep=True)
    for field in ("latent_channels", "latent_scale"):
        if getattr(autoencoder, field) != getattr(manifest, field):
            raise InputError(
                f"--vae {vae}: its {field} is {getattr(autoencoder, field)}, the set's {getattr(manifest, field)}; "
                "name the autoencoder that the set was made with"
            )
    return lambda latents: to_uint8(autoencoder.decode(latents)), f"decoded by {vae}"


def draw_sheet(
    args: argparse.Namespace, manifest: Manifest, survey: Survey, decode, heading: str, path: pathlib.Path
) -> None:
    """Samples drawn from all parts of the set, whole ones only."""
    parts = np.array_split(survey.places, min(args.num_pictures, len(survey.places)))
    rng, reader = np.random.default_rng(args.seed), ShardReader(args.directory)
    samples: list[Sample] = [reader[rng.choice(part)] for part in parts]
    latents = [sample.latent_mean.astype(np.float32) for sample in samples]
    if decode is None:
        # In one go, however they are shaped, so that colours compare.
        cells = np.concatenate([each.reshape(1, -1, 1, each.shape[-1]) for each in latents], axis=1)
        colours = to_uint8(false_colour(cells))[0, :, 0]
        ends = np.cumsum([each.shape[0] * each.shape[1] for each in latents])
        flat = np.split(colours, ends[:-1])
        pictures = [part.reshape(*each.shape[:2], 3) for part, each in zip(flat, latents, strict=True)]
    else:
        progress, pictures = ProgressLines("pictures"), []
        for each in latents:
            pictures.append(decode(each[None])[0])
            progress(len(pictures), len(latents))
    captions = []
    for sample in samples:
        about = [bucket_name(sample.bucket)]
        about += [] if sample.label is None else [f"class {sample.label}"]
        about += [f"1 of {len(sample.texts)} captions"] if len(sample.texts) > 1 else []
        captions.append(f"[{', '.join(about)}] {sample.caption}".encode(errors="replace").decode())
    save_png(path, contact_sheet(pictures, captions, heading))


def figures(manifest: Manifest, survey: Survey) -> DataFigures:
    mean, std, _ = survey.latent_moments()
    return DataFigures(
        buckets=survey.buckets,
        caption_lengths=counts_array(survey.lengths, manifest.max_text_tokens),
        captions_per_picture=counts_array(survey.captions_per_picture, max(survey.captions_per_picture)),
        record_bytes=survey.record_bytes,
        latent_mean=mean,
        latent_std=std,
    )


def counts_array(counts: collections.Counter, last: int) -> np.ndarray:
    return np.array([counts[value] for value in range(last + 1)])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("inspect_data"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="DIR", type=name_argument, help="a set of feature shards, or any source of pictures"
    )
    add_picture_options(parser)
    parser.add_argument("--vae", type=path_argument, metavar="DIR", help="converted autoencoder that the set is of")
    parser.add_argument(
        "--out", type=path_argument, help=f"for what is drawn (default: {OUT}/ in the set, of a source here)"
    )
    parser.add_argument("--num-pictures", type=int, default=48, help="on the contact sheet (default: %(default)s)")
    parser.add_argument("--seed", type=seed_argument, default=0, help="which pictures (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
