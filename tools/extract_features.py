"""Pictures with captions or class labels to feature shards, which training reads.

python -m tools.extract_features --source photos/ --out data/train --resolution 512 --checkpoint weights/sigma-512
python -m tools.extract_features --source list.json --out data/train --resolution 512 1024 --checkpoint weights/sigma
python -m tools.extract_features --source "sam-{000000..000999}.tar" --out data/sam --resolution 256 \
    --family alpha --text-encoder weights/t5 --vae weights/vae --process-index 3 --process-count 16
python -m tools.extract_features --source classes:imagenet/train --out data/classes --resolution 256 --vae weights/vae
python -m tools.extract_features --source list.json --out data/train --resolution 512 --family alpha \
    --reference-text data/caption_features --reference-latents data/img_vae_features

Killed and started again with the same command, it goes on. Pictures that cannot be used are listed with their reason in
DIR/skipped.jsonl; docs/data.md describes every kind of source.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pixart_jax.commands import GOES_ON, command, name_argument, path_argument, quieten_libraries, tool, with_commands
from pixart_jax.conversion.describe import FAMILIES
from pixart_jax.conversion.stored import read_stored_model
from pixart_jax.data.buckets import RESOLUTIONS
from pixart_jax.data.reference_features import open_reference_features
from pixart_jax.data.shards.manifest import CONTROLS, read_manifest
from pixart_jax.data.shards.records import TEXT_DTYPES
from pixart_jax.encoding.control import open_control
from pixart_jax.encoding.engine import Units, extract
from pixart_jax.encoding.picture_features import KINDS, PictureFeatures, open_features
from pixart_jax.encoding.pictures import EncodedPictures
from pixart_jax.encoding.pretrained import Autoencoder, T5TextEncoder, local_mesh
from pixart_jax.encoding.reference import ReferenceUnits
from pixart_jax.encoding.skipped import skipped_reasons
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import SKIPPED_FILE
from pixart_jax.training.metrics import format_duration

from .picture_source import OPTIONS as PICTURE_OPTIONS
from .picture_source import add_picture_options, open_named
from .shares import add_share, check_counts, check_share, share_of

# Options that say how pictures are found and encoded, by their name in the parsed arguments: there is nothing for them
# to do where features exist, and the other way round.
OF_PICTURES = (
    *PICTURE_OPTIONS, "min_side", "max_pixels", "checkpoint", "vae", "text_encoder", "labels", "dtype",
    "batch_size", "control", "control_dir", "hed", "align", "align_weights",
)  # fmt: skip
OF_REFERENCE = ("reference_text", "reference_latents", "caption_field")


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    quieten_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # of bad files, which are counted and listed
    begin = time.perf_counter()
    check_share(args)
    check_counts(args, ("items_per_shard", "batch_size", "num_threads"))
    units = open_reference(args) if args.reference_text or args.reference_latents else open_pictures_of(args)
    finished = extract(units, args.out, **share_of(args))
    seconds = format_duration(time.perf_counter() - begin)
    if not finished:
        print(f"this process's share is done in {seconds}; the set is complete when the others are done too")
        return 0
    print(f"{args.out}: done in {seconds}")
    try:
        print(summary(args.out))
    except InputError as error:  # Changed since: a set that is there is done all the same.
        print(f"warning: {error}", file=sys.stderr)
    return 0


def open_pictures_of(args: argparse.Namespace) -> Units:
    """The source and the encoders that the command line names."""
    refuse(args, OF_REFERENCE, "is for features that exist; name their folders, or leave it out")
    pictures, about = open_named(args, args.source)
    pictures, make_control = open_control(
        pictures, args.control, folder=args.control_dir, hed=args.hed, options=("--control", "--control-dir", "--hed")
    )
    print(
        f"{args.source}: {len(pictures)} items, {len(pictures.class_names)} classes; each new shape of picture is "
        f"compiled first, and every {args.items_per_shard} items are a line here",
        file=sys.stderr,
    )
    dtype = jnp.dtype(args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    mesh = local_mesh()
    vae = args.vae or (args.checkpoint and args.checkpoint / "vae")
    if not vae:
        raise InputError("pictures need an autoencoder: name a converted model (--checkpoint) or autoencoder (--vae)")
    autoencoder = Autoencoder(vae, mesh=mesh, dtype=dtype, keep=True)
    about |= {"dtype": dtype.name, "vae": autoencoder.probe()}
    text_encoder, cleaning = None, "none"
    if not args.labels:
        directory = args.text_encoder or (args.checkpoint and args.checkpoint / "text_encoder")
        if not directory:
            raise InputError(
                "captions need a text encoder: name a converted model (--checkpoint) or T5 (--text-encoder); for "
                "class-conditional training pass --labels"
            )
        cleaning, max_tokens = captions_of(args)
        text_encoder = T5TextEncoder(directory, max_tokens=max_tokens, mesh=mesh, dtype=dtype, keep=True)
        about |= {"text_encoder": text_encoder.probe(), "max_text_tokens": max_tokens}
    elif not pictures.class_names:
        raise InputError(f"--labels: {args.source} has no class labels; see docs/data.md for the sources that have")
    return EncodedPictures(
        pictures,
        args.resolution,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        caption_cleaning=cleaning,
        text_dtype=args.text_dtype,
        about=about,
        items_per_unit=args.items_per_shard,
        batch_size=args.batch_size,
        min_side=args.min_side,
        max_pixels=args.max_pixels,
        num_threads=args.num_threads,
        control=args.control,
        make_control=make_control,
        features=features_of(args),
    )


def features_of(args: argparse.Namespace) -> PictureFeatures | None:
    """What the model is to be aligned with, as the command line says; says what it takes of a shard."""
    if bool(args.align) != bool(args.align_weights):
        raise InputError(
            "--align and --align-weights go together: name the network, and the file or folder of its weights"
        )
    if not args.align:
        return None
    features = open_features(args.align, args.align_weights)
    side = max(args.resolution)
    count = features.bytes_per_picture(side, side)
    print(f"--align: {count:,} bytes of {features.name} to a square picture of {side} pixels", file=sys.stderr)
    return features


def open_reference(args: argparse.Namespace) -> Units:
    """The list and the folders of features that the command line names."""
    refuse(
        args,
        OF_PICTURES,
        "is for encoding pictures, and --reference-text and --reference-latents are encoded; leave it out",
    )
    if not (args.reference_text and args.reference_latents):
        raise InputError("--reference-text and --reference-latents go together: name the folders of .npz and of .npy")
    if not args.source.lower().endswith((".json", ".jsonl")):
        raise InputError(f"--source {args.source}: name the .json or .jsonl list that the features were extracted from")
    if not args.family:
        raise InputError("--family alpha or --family sigma says whose features they are, which no file of them tells")
    if len(set(args.resolution)) > 1:
        raise InputError(f"--resolution {args.resolution}: a folder of latents is of one resolution; import one by one")
    field = args.caption_field or "prompt"
    about = {"source": args.source, "caption_field": field}
    source = open_reference_features(
        args.source, text_dir=args.reference_text, latents_dir=args.reference_latents, caption_field=field
    )
    print(f"{args.source}: {len(source)} records", file=sys.stderr)
    return ReferenceUnits(
        source,
        args.resolution[0],
        family=args.family,
        text_dtype=args.text_dtype,
        about=about | {name: str(getattr(args, name)) for name in ("reference_text", "reference_latents")},
        items_per_unit=args.items_per_shard,
        num_threads=args.num_threads,
    )


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises InputError for options that were given and that this run would not heed."""
    default = make_parser().get_default
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != default(name)]:
        raise InputError(f"{', '.join(given)} {why}")


def captions_of(args: argparse.Namespace) -> tuple[str, int]:
    """How captions are cleaned, and how many tokens of them are read."""
    if args.family:
        return args.family, FAMILIES[args.family]["max_text_tokens"]
    if args.checkpoint is None:
        raise InputError("--family alpha or --family sigma says how captions are cleaned and how long they may be")
    stored = read_stored_model(args.checkpoint)
    return stored.caption_cleaning, stored.model.max_text_tokens


def summary(out: pathlib.Path) -> str:
    """What the sets hold, and what was skipped for which reason."""
    lines = []
    for path in sorted(out.glob("**/manifest.json")):
        manifest = read_manifest(path.parent)
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        lines.append(
            f"{path.parent}: {manifest.num_samples} samples in {len(manifest.shards)} shards, "
            f"{num_bytes / 1e6:,.1f} MB, {len(manifest.buckets)} buckets"
        )
    reasons = skipped_reasons(out / SKIPPED_FILE)
    if reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        lines.append(f"{sum(reasons.values())} items skipped ({out / SKIPPED_FILE}): {counts}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command("extract_features"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=name_argument, required=True, help="pictures and captions; see docs/data.md")
    parser.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="must not exist")
    parser.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        required=True,
        choices=RESOLUTIONS,
        help="pixels along a side of the buckets' square; of several each has a folder of DIR",
    )
    source = parser.add_argument_group("source")
    add_picture_options(source)
    source.add_argument("--min-side", type=int, default=64, help="skip smaller pictures (default: %(default)s px)")
    source.add_argument("--max-pixels", type=int, default=2**27, help="skip larger pictures (default: %(default)s)")

    control = parser.add_argument_group("control", "for training a ControlNet: a control picture beside each picture")
    control.add_argument(
        "--control",
        choices=CONTROLS,
        default="none",
        help="edges of the picture by Canny or HED, or a picture given by the source, or in --control-dir (default: "
        "%(default)s)",
    )
    control.add_argument(
        "--control-dir", type=path_argument, metavar="DIR", help="control pictures of the pictures' own names and sizes"
    )
    control.add_argument("--hed", type=path_argument, metavar="FILE", help="HED's weights, ControlNetHED.pth")

    align = parser.add_argument_group(
        "alignment", "for training with config.align: a frozen network's view of each picture"
    )
    align.add_argument("--align", choices=KINDS, help="the network: a DINOv2 or DINOv3, or EfficientNet-lite0")
    align.add_argument(
        "--align-weights", type=path_argument, metavar="PATH", help="its published file, or folder of transformers"
    )

    encoders = parser.add_argument_group("encoders", "directories that tools.convert wrote")
    encoders.add_argument("--checkpoint", type=path_argument, metavar="DIR", help="a model with both encoders")
    encoders.add_argument("--vae", type=path_argument, metavar="DIR", help="default: the checkpoint's")
    encoders.add_argument("--text-encoder", type=path_argument, metavar="DIR", help="default: the checkpoint's")
    encoders.add_argument("--family", choices=FAMILIES, help="of captions or of features (default: the checkpoint's)")
    encoders.add_argument("--labels", action="store_true", help="class labels in place of captions, for stage 1")
    encoders.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of matrix products (default: bfloat16 but on a CPU)"
    )
    encoders.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: %(default)s)")

    reference = parser.add_argument_group(
        "reference", "features that PixArt's own tools extracted, in place of encoders"
    )
    reference.add_argument("--reference-text", type=path_argument, metavar="DIR", help="of .npz files")
    reference.add_argument("--reference-latents", type=path_argument, metavar="DIR", help="of .npy files")
    reference.add_argument("--caption-field", metavar="FIELD", help="that the text is of (default: prompt)")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--text-dtype",
        choices=TEXT_DTYPES,
        default="bfloat16",
        help="int8 has a scale per token (default: %(default)s)",
    )
    output.add_argument(
        "--items-per-shard", type=int, default=1024, help="what a kill can cost at most (default: %(default)s)"
    )

    add_share(parser).add_argument("--num-threads", type=int, default=os.cpu_count() or 1, help="that read and decode")
    return parser


if __name__ == "__main__":
    sys.exit(main())
