"""Weights of PixArt and DiT from one format to another: PyTorch checkpoints, diffusers folders, and our own.

python -m tools.convert PixArt-XL-2-1024-MS.pth models/alpha-1024            # a directory for JAX
python -m tools.convert PixArt-Sigma-XL-2-512-MS/ models/sigma-512 --family sigma
python -m tools.convert models/alpha-1024 out.pth --to pixart                # and back
python -m tools.convert models/alpha-1024 out/transformer --to diffusers
python -m tools.convert runs/mine out/transformer --to diffusers             # a run's newest checkpoint
python -m tools.convert PixArt-Sigma-pipeline/ models/sigma     # with its T5, autoencoder and tokenizer
python -m tools.convert sd-vae-ft-ema/ models/vae               # either of the two by itself
python -m tools.convert DiT-XL-2-256x256.pt models/start --reparameterize t500   # stage 2 starts at stage 1's weights
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

from safetensors import SafetensorError

from pixart_jax.checkpoints import Checkpoints
from pixart_jax.config import build_model, load_config, position_base
from pixart_jax.conversion.describe import FAMILIES, NO_HINTS, Hints
from pixart_jax.conversion.encoders import (
    TOKENIZER,
    EncoderSource,
    copy_tokenizer,
    encoder_kind,
    open_encoder,
    open_pipeline,
    write_encoder,
)
from pixart_jax.conversion.from_dit import with_captions
from pixart_jax.conversion.reparameterize import UNCONDITIONAL, format_error_table
from pixart_jax.conversion.sources import Source, open_source
from pixart_jax.conversion.stored import StoredModel, StoredParams
from pixart_jax.conversion.transfer import (
    Weights,
    load_weights,
    read_null_text,
    write_diffusers,
    write_orbax,
    write_pixart,
)
from pixart_jax.data.manifest import read_manifest
from pixart_jax.errors import InputError
from pixart_jax.files import fsync
from pixart_jax.generate import ENCODERS

WRITERS = {"orbax": write_orbax, "pixart": write_pixart, "diffusers": write_diffusers}

ENCODER_NAMES = {"text_encoder": "a T5 encoder", "vae": "an image autoencoder"}

# Options that only --reparameterize heeds.
REPARAMETERIZE_OPTIONS = ("unconditional", "text_dim", "max_text_tokens", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    begin = time.perf_counter()
    try:
        refuse_existing(args.target)
        if kind := encoder_kind(args.source):
            lone = load_encoder(args, kind)
            with published(args.target) as temporary:
                write_encoder(temporary, lone)
        else:
            encoders = load_encoders(args)
            weights = load(args)
            print(summary(weights.stored), flush=True)
            with published(args.target) as temporary:
                WRITERS[args.to](temporary, weights)
                write_encoders(temporary, encoders, args.source)
        num_bytes = size(args.target)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.target}: {args.to}, {num_bytes / 1e6:,.1f} MB, in {time.perf_counter() - begin:.1f} s")
    return 0


def load_encoder(args: argparse.Namespace, kind: str) -> EncoderSource:
    """SRC, a text encoder or an autoencoder by itself."""
    options = (value for name, value in vars(args).items() if name not in ("source", "target", "to"))
    if args.to != "orbax" or any(value is not None and value is not False for value in options):
        raise InputError(f"{args.source} is no transformer: it can only become a directory for JAX, without options")
    encoder = open_encoder(args.source, kind)
    print(f"{args.source}: {ENCODER_NAMES[kind]}, {len(encoder.arrays)} arrays", flush=True)
    return encoder


def load_encoders(args: argparse.Namespace) -> list[EncoderSource]:
    """What is beside the transformer where SRC is a whole pipeline; other formats than ours have no place for it."""
    if args.to != "orbax" or args.no_encoders or not (args.source / "model_index.json").exists():
        return []
    try:
        encoders = open_pipeline(args.source)
    except InputError as error:
        raise InputError(f"{error}\nwith --no-encoders the transformer is converted by itself") from error
    for encoder in encoders:
        print(f"{encoder.path}: {ENCODER_NAMES[encoder.kind]}, {len(encoder.arrays)} arrays", flush=True)
    if absent := [kind for kind in ENCODER_NAMES if kind not in {encoder.kind for encoder in encoders}]:
        print(f"{args.source}: without {' and '.join(absent)}, which are not in it", flush=True)
    return encoders


def write_encoders(target: pathlib.Path, encoders: list[EncoderSource], source: pathlib.Path) -> None:
    """Beside the transformer, under the names that they have in a pipeline."""
    for encoder in encoders:
        write_encoder(target / encoder.kind, encoder)
        if encoder.kind == "text_encoder" and (source / TOKENIZER).is_dir():
            copy_tokenizer(source / TOKENIZER, target / TOKENIZER)


def load(args: argparse.Namespace) -> Weights:
    """SRC with the options that say what it does not; prints what it is."""
    given = {name: value for name in REPARAMETERIZE_OPTIONS if (value := getattr(args, name)) is not None}
    if args.reparameterize is None:
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"without --reparameterize nothing heeds {options}; leave it out")
        return load_source(args, args.family)
    # The family is what it becomes; a DiT is of none.
    weights = load_source(args, None)
    try:
        weights, errors = with_captions(weights, method=args.reparameterize, family=args.family, **given)
    except InputError as error:
        raise InputError(f"{args.source}: {error}") from error
    print("error of the modulation, ‖PixArt − DiT‖/‖DiT‖, by timestep:")
    print(format_error_table(errors), flush=True)
    return weights


def load_source(args: argparse.Namespace, family: str | None) -> Weights:
    """SRC as it is."""
    hints = Hints(family, args.num_heads, args.resolution, args.position_scale)
    null_text = read_null_text(args.null_text) if args.null_text else None
    if (args.source / "checkpoints").is_dir():
        if hints != NO_HINTS or null_text is not None:
            raise InputError(f"{args.source} is the workdir of a run, which says all; leave the options out")
        weights = load_run(args.source, ema=args.ema is not False)
        print(f"{args.source}: a training run, {weights.stored.provenance['weights']}")
        return weights
    source = open_source(args.source, ema=args.ema)
    print(f"{args.source}: {what(source)}")
    if args.reparameterize and source.kind not in ("dit", "orbax"):
        # Before it is read, and before its other questions are asked.
        raise InputError(f"{args.source} is {what(source)}; only a DiT can be re-parameterized")
    return load_weights(source, hints, null_text)


def load_run(workdir: pathlib.Path, *, ema: bool) -> Weights:
    """The newest checkpoint of a training run.

    Raises:
      InputError: there is none, or it is damaged.
    """
    config = load_config(workdir)
    model = build_model(config)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.latest_step
    checkpoints.close()
    if step is None:
        raise InputError(f"{workdir}: no checkpoint yet; train first")
    item = "ema_params" if ema else "params"
    params = StoredParams(checkpoints.directory / str(step) / item, model)
    stored = StoredModel(
        model=model,
        position_base=position_base(config),
        position_scale=config.model.position_scale,
        latent_scale=read_manifest(workdir / ENCODERS).latent_scale,
        null_text="none" if model.num_classes else "stored",
        provenance={"source": workdir.name, "format": "run", "weights": f"{item} of step {step}"},
    )
    return Weights(stored, list(params), params.__getitem__)


@contextlib.contextmanager
def published(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside the target to write to; it becomes the target once all is on disk, and goes if anything fails.

    Raises:
      InputError: the target exists, or cannot be written.
    """
    target = target.absolute()
    temporary = target.with_name(f".{target.name}.incomplete")
    new_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # Left by a run that was killed.
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            fsync(path)
        refuse_existing(target)
        temporary.rename(target)
        fsync(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(temporary)
            for parent in new_parents:
                parent.rmdir()
        # What torch and safetensors raise when a disk is full.
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise InputError(f"{target} cannot be written: {error}") from error
        raise


def refuse_existing(target: pathlib.Path) -> None:
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or name another")


def remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def what(source: Source) -> str:
    """One line on what was found."""
    names = {
        "pixart": "a PixArt checkpoint",
        "dit": "a DiT checkpoint",
        "controlnet": "a PixArt with a ControlNet",
        "diffusers": "a diffusers transformer",
        "orbax": "a model of ours",
    }
    weights = f", {source.weights}" if source.weights else ""
    arrays = f", {len(source.shapes)} arrays" if source.shapes else ""
    return f"{names[source.kind]}{weights}{arrays}"


def summary(stored: StoredModel) -> str:
    """One line on what the model is, for the user to compare with what it should be."""
    model = stored.model
    parts = [
        f"{model.depth} blocks of {model.hidden_size}, {model.num_heads} heads",
        f"{model.num_classes} classes" if model.num_classes else f"{model.max_text_tokens} tokens of {model.text_dim}",
        f"{stored.resolution} px, position scale {stored.position_scale:g}, latent scale {stored.latent_scale:g}",
    ]
    parts += ["micro-conditions"] if model.micro_condition else []
    parts += [f"key/value compression in {sum(r > 1 for r in model.kv_compress)} blocks"] if model.kv_compress else []
    parts += ["qk-norm"] if model.qk_norm else []
    parts += ["no null caption (--null-text adds it)"] if stored.null_text == "missing" else []
    return "; ".join(parts)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="SRC", type=pathlib.Path, help="a file or folder in any format, or a run's workdir"
    )
    parser.add_argument("target", metavar="DST", type=pathlib.Path, help="must not exist")
    parser.add_argument("--to", choices=WRITERS, default="orbax", help="format of DST (default: %(default)s)")
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="where SRC has both: the averaged weights, or not (default: not for PixArt's own checkpoints, else yes)",
    )
    parser.add_argument("--family", choices=FAMILIES, help="where SRC does not tell it")
    parser.add_argument("--num-heads", type=int, help="where the hidden size does not tell it")
    parser.add_argument(
        "--resolution", type=int, help="pixels along one side of the square, where SRC does not tell it"
    )
    parser.add_argument("--position-scale", type=float, help="where SRC does not tell it, or wrongly")
    parser.add_argument(
        "--null-text",
        type=pathlib.Path,
        help="features of the empty caption, to be the null caption: a .npy, or PixArt-Σ's null_embed_diffusers_*.pth",
    )
    parser.add_argument(
        "--no-encoders",
        action="store_true",
        help="of a pipeline, the transformer only, without its text encoder, autoencoder and tokenizer",
    )
    group = parser.add_argument_group(
        "re-parameterization",
        "from a class-conditional DiT to a PixArt with captions, for the second stage of training",
    )
    group.add_argument(
        "--reparameterize",
        metavar="METHOD",
        help="t500 equals the DiT at t = 500, likewise any tN; mean is closest over all timesteps",
    )
    group.add_argument(
        "--unconditional",
        choices=UNCONDITIONAL,
        help="what the DiT is without a class: the null class of its guidance, or no vector at all (default: null)",
    )
    group.add_argument("--text-dim", type=int, help="width of the text features (default: 4096)")
    group.add_argument("--max-text-tokens", type=int, help="longest caption (default: the family's; 120 without one)")
    group.add_argument("--seed", type=int, help="of the parameters that a DiT lacks (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
