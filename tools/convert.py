"""Weights of PixArt and DiT from one format to another: PyTorch checkpoints, diffusers folders, and our own.

python -m tools.convert PixArt-alpha/PixArt-Sigma-XL-2-1024-MS models/sigma  # from the Hugging Face hub
python -m tools.convert PixArt-XL-2-1024-MS.pth models/alpha-1024            # a directory for JAX
python -m tools.convert PixArt-Sigma-XL-2-512-MS/ models/sigma-512 --family sigma
python -m tools.convert models/alpha-1024 out.pth --to pixart                # and back
python -m tools.convert models/alpha-1024 out/transformer --to diffusers
python -m tools.convert runs/mine out/transformer --to diffusers             # a run's newest checkpoint
python -m tools.convert PixArt-Sigma-pipeline/ models/sigma     # with its T5, tokenizer and autoencoder
python -m tools.convert alpha.pth models/alpha --encoders PixArt-Alpha-pipeline/       # or with another's
python -m tools.convert models/sigma out/pipeline --to diffusers                       # and back, as a whole pipeline
python -m tools.convert runs/mine out/pipeline --to diffusers --encoders models/sigma  # a run as a pipeline
python -m tools.convert sd-vae-ft-ema/ models/vae               # an encoder by itself, either way
python -m tools.convert openai/clip-vit-large-patch14 models/clip                      # a CLIP, to measure with
python -m tools.convert models/sigma out/transformer --to diffusers --lora style.safetensors:0.8  # merged into it
python -m tools.convert runs/style out/style --to peft          # an adapter, of a run or of any file, for PEFT
python -m tools.convert models/alpha-1024 models/edges --controlnet hed/  # with a ControlNet beside it
python -m tools.convert models/edges out/controlnet --to controlnet     # which can be written by itself
python -m tools.convert DiT-XL-2-256x256.pt models/start --reparameterize t500   # stage 2 starts at stage 1's weights
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Sequence

from pixart_jax.commands import (
    BEGINS_AGAIN,
    quieten_libraries,
    tool,
)
from pixart_jax.conversion.control import Control
from pixart_jax.conversion.controlnet_files import open_controlnet, write_controlnet
from pixart_jax.conversion.encoder_kinds import KINDS
from pixart_jax.conversion.encoders import (
    EncoderSource,
    copy_tokenizer,
    encoder_kind,
    open_encoder,
    open_encoders,
    write_encoder,
    write_reference_encoder,
)
from pixart_jax.conversion.formats.base import NO_HINTS, Hints, ModelWeights, Source
from pixart_jax.conversion.formats.lora_reading import read_loras
from pixart_jax.conversion.formats.lora_writing import ADAPTER_WRITERS
from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.lora import merge
from pixart_jax.conversion.pipelines import PIPELINES, check_fit, limits, missing_parts, pipeline_family, write_pipeline
from pixart_jax.conversion.publishing import claimed, published
from pixart_jax.conversion.runs import load_run_control, load_run_lora
from pixart_jax.conversion.scheduler_samplers import drawing_of
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.transfer import (
    load_weights,
    lost,
    read_null_text,
    write_orbax,
    write_pixart,
    write_transformer,
)
from pixart_jax.data.shards.manifest import ENCODERS
from pixart_jax.encoding.registry import copy_own_encoders
from pixart_jax.errors import InputError
from pixart_jax.files import refuse_patterns
from pixart_jax.warm_start.from_dit import with_captions
from pixart_jax.warm_start.reparameterize import format_error_table
from pixart_jax.warm_start.start import load_run_weights

from .convert_options import REPARAMETERIZE_OPTIONS, make_parser


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    begin = time.perf_counter()
    if args.to == "orbax":
        refuse_patterns(args.target, "DST")
    with claimed(args.target):
        fetch_sources(args)
        if args.to in ADAPTER_WRITERS:
            written = convert_adapter(args)
        elif kind := encoder_kind(args.source):
            written = convert_encoder(args, kind)
        else:
            written = convert_model(args)
    num_bytes = size(args.target)
    print(f"{args.target}: {written}, {num_bytes / 1e6:,.1f} MB, in {time.perf_counter() - begin:.1f} s")
    return 0


def convert_adapter(args: argparse.Namespace) -> str:
    """SRC, an adapter or the run that has trained it, to DST; returns what was written."""
    unheeded = {name: value for name, value in vars(args).items() if name not in ("source", "target", "to", "name")}
    is_run = (args.source / "checkpoints").is_dir()
    unheeded.pop("ema" if is_run else "alpha")
    if any(map(is_given, unheeded.values())):
        raise InputError(
            f"--to {args.to} writes the adapter alone, and heeds none of the other options; leave them out"
        )
    if args.to == "diffusers-lora" and args.target.suffix != ".safetensors":
        # Nobody would read it again: what a file of weights is, its name says.
        raise InputError(f"--to diffusers-lora writes one file: call it {args.target}.safetensors")
    if is_run:
        lora, arrays = load_run_lora(args.source, ema=args.ema is not False)
        print(f"{args.source}: a training run, {arrays.name}")
    else:
        (lora, _), *_ = read_loras([str(args.source)], args.alpha)
    scales = sorted({round(lora.scale(name), 4) for name in lora.layers})
    ranks = sorted({layer.rank for layer in lora.layers.values()})
    print(f"{args.source}: {len(lora.layers)} layers, ranks {ranks}, scales {scales}", flush=True)
    with published(args.target) as temporary:
        ADAPTER_WRITERS[args.to](temporary, lora)
    return args.to


def fetch_sources(args: argparse.Namespace) -> None:
    """Puts local paths in place of hub ids; remembers in `args.name` what SRC was called."""
    wants_encoders = args.to not in ("pixart", *ADAPTER_WRITERS) and not args.no_encoders and not args.encoders
    is_local = os.path.lexists(args.source)
    args.name = pathlib.Path(args.source).absolute().name if is_local else args.source
    args.source = fetch(args.source, encoders=wants_encoders)
    if args.encoders:
        args.encoders = fetch(args.encoders)


def is_given(value: object) -> bool:
    """Whether an option stands on the command line; 0 does."""
    return value is not None and value is not False and value != []


def convert_encoder(args: argparse.Namespace, kind: str) -> str:
    """SRC, a text encoder, an autoencoder or a CLIP by itself, to DST; returns what was written."""
    options = (value for name, value in vars(args).items() if name not in ("source", "target", "to", "name"))
    if args.to == "pixart" or any(map(is_given, options)):
        raise InputError(
            f"{args.source} is no transformer: it can only become a directory for JAX, or with --to diffusers a folder "
            "for PyTorch, without other options"
        )
    encoder = open_encoder(args.source, kind)
    print(what_encoder(encoder), flush=True)
    with published(args.target) as temporary:
        if args.to == "orbax":
            write_encoder(temporary, encoder)
        else:
            write_reference_encoder(temporary, encoder)
            if encoder.tokenizer:
                # A text encoder by itself has it among its own files.
                copy_tokenizer(encoder.tokenizer, temporary)
    return args.to


def convert_model(args: argparse.Namespace) -> str:
    """SRC, a transformer and what goes beside it, to DST; returns what was written."""
    if args.to == "controlnet":
        return convert_control_alone(args)
    loras = read_loras(args.lora, args.alpha)
    encoders = load_encoders(args)
    weights = merge(load(args, to_pipeline=args.to == "diffusers" and bool(encoders)), loras)
    if args.sampler:
        weights.stored.target.schedule(args.sampler)  # Or says why it has none.
        weights = dataclasses.replace(
            weights, stored=dataclasses.replace(weights.stored, **drawing_of(args.sampler, weights.stored.num_steps))
        )
    if args.controlnet:
        control = open_controlnet(args.controlnet, weights.stored.model, ema=args.ema is not False)
        weights = dataclasses.replace(weights, control=control)
    stored = weights.stored
    print(summary(weights), flush=True)
    if stored.model.num_classes and any(encoder.kind == "text_encoder" for encoder in encoders):
        print("a class-conditional model has no use for the text encoder, which stays out", flush=True)
        encoders = [encoder for encoder in encoders if encoder.kind != "text_encoder"]
    check_fit(stored, encoders)
    for line in lost(stored) if args.to != "orbax" else ():
        print(f"warning: {line}", flush=True)
    if args.to == "pixart" and stored.model.kv_compress and stored.model.kv_sampling != "conv":
        ratio, first = max(stored.model.kv_compress), next(i for i, r in enumerate(stored.model.kv_compress) if r > 1)
        told = f"--kv-sampling {stored.model.kv_sampling} --kv-ratio {ratio} --kv-from {first}"
        print(f"warning: the file cannot tell how keys and values are compressed; to convert back: {told}", flush=True)
    if args.to == "diffusers" and encoders:
        family = pipeline_family(stored, args.family)
        for line in limits(stored, encoders, family):
            print(f"warning: {line}", flush=True)
        with published(args.target) as temporary:
            write_pipeline(temporary, weights, encoders, family)
        return f"diffusers, a whole {PIPELINES[family]}"
    with published(args.target) as temporary:
        {"orbax": write_orbax, "pixart": write_pixart, "diffusers": write_transformer}[args.to](temporary, weights)
        for encoder in encoders:
            write_encoder(temporary / encoder.kind, encoder)
        if args.to == "orbax" and not args.no_encoders:
            copy_own_encoders(args.source / ENCODERS, temporary / ENCODERS)
    alone = ", the transformer alone (--encoders DIR makes it a pipeline)"
    return args.to + (alone if args.to == "diffusers" else "")


def convert_control_alone(args: argparse.Namespace) -> str:
    """The ControlNet of SRC to DST; returns what was written."""
    if args.controlnet or args.encoders:
        option = "--controlnet" if args.controlnet else "--encoders"
        raise InputError(f"--to controlnet writes the ControlNet of SRC and nothing else; leave {option} out")
    control: Control | None
    if (args.source / "checkpoints").is_dir():
        control, arrays = load_run_control(args.source, None, ema=args.ema is not False)
        print(f"{args.source}: a training run, {arrays.name}")
    else:
        control = load(args, to_pipeline=False).control
    if control is None:
        raise InputError(f"{args.source} has no ControlNet in it; name one that has, or another --to")
    print(f"a ControlNet of {control.num_copies} copied blocks", flush=True)
    with published(args.target) as temporary:
        write_controlnet(temporary, control)
    return "controlnet, as diffusers' research project has it"


def load_encoders(args: argparse.Namespace) -> list[EncoderSource]:
    """What goes beside the transformer: all of --encoders, or of SRC; for a pipeline, nothing if it is not whole."""
    if args.to == "pixart" and args.encoders:
        raise InputError("a .pth has no place for encoders; leave --encoders out")
    if args.to == "pixart" or args.no_encoders:
        return []
    folder = args.encoders or args.source
    try:
        encoders = open_encoders(folder)
    except InputError as error:
        if not (args.source / "checkpoints").is_dir():
            open_source(args.source, ema=args.ema)  # Its own error comes first: the advice would lead to it.
        raise InputError(f"{error}\nwith --no-encoders the transformer is converted by itself") from error
    for encoder in encoders:
        print(what_encoder(encoder), flush=True)
    absent = missing_parts(encoders)
    if args.encoders and not encoders:
        raise InputError(f"{folder} has neither a text_encoder/ nor a vae/ with a config.json; name another folder")
    if absent and (encoders or (folder / "model_index.json").exists()):
        print(f"{folder}: no {', no '.join(absent)} in it", flush=True)
    if args.to == "diffusers" and absent:
        if args.encoders:
            raise InputError(f"{folder}: no {', no '.join(absent)} in it, which a pipeline needs")
        return []
    return encoders


def load(args: argparse.Namespace, *, to_pipeline: bool) -> ModelWeights:
    """SRC with the options that say what it does not; prints what it is.

    Args:
      to_pipeline: --family is heeded later, whatever SRC is.
    """
    given = {name: value for name in REPARAMETERIZE_OPTIONS if (value := getattr(args, name)) is not None}
    if args.reparameterize is None:
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"without --reparameterize nothing heeds {options}; leave it out")
        return load_source(args, args.family, to_pipeline=to_pipeline)
    # The family is what it becomes; a DiT is of none.
    weights = load_source(args, None, to_pipeline=to_pipeline)
    try:
        weights, errors = with_captions(weights, method=args.reparameterize, family=args.family, **given)
    except InputError as error:
        raise InputError(f"{args.source}: {error}") from error
    print("error of the modulation, ‖PixArt − DiT‖/‖DiT‖, by timestep:")
    print(format_error_table(errors), flush=True)
    return weights


def load_source(args: argparse.Namespace, family: str | None, *, to_pipeline: bool) -> ModelWeights:
    """SRC as it is."""
    hints = Hints(
        family,
        args.num_heads,
        args.resolution,
        args.position_scale,
        args.kv_sampling,
        args.kv_ratio,
        args.kv_from,
        ignore_scheduler=args.ignore_scheduler,
    )
    # For what says all about its model.
    further = dataclasses.replace(hints, family=None) if to_pipeline else hints
    null_text = read_null_text(args.null_text) if args.null_text else None
    if (args.source / "checkpoints").is_dir():
        if further != NO_HINTS or null_text is not None:
            raise InputError(f"{args.source} is the workdir of a run, which says all; leave the options out")
        weights = load_run_weights(args.source, ema=args.ema is not False)
        print(f"{args.source}: a training run, {weights.stored.provenance['weights']}")
        return weights
    source = open_source(args.source, ema=args.ema)
    print(f"{args.source}: {what(source)}")
    if args.reparameterize and not source.format.may_be_dit:
        # Before it is read, and before its other questions are asked.
        raise InputError(f"{args.source} is {what(source)}; only a DiT can be re-parameterized")
    if source.format.says_all:
        return load_weights(source, further, null_text)
    weights = load_weights(source, hints, null_text)
    # Not the file's own name, which in a pipeline is "transformer" and in the hub's cache a hash.
    provenance = weights.stored.provenance | {"source": args.name}
    return dataclasses.replace(weights, stored=dataclasses.replace(weights.stored, provenance=provenance))


def size(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def what(source: Source) -> str:
    """One line on what was found."""
    weights = f", {source.weights}" if source.weights else ""
    arrays = f", {len(source.shapes)} arrays" if source.shapes else ""
    return ", ".join([f"{source.format.title}{weights}{arrays}", *source.notes])


def what_encoder(encoder: EncoderSource) -> str:
    """One line on what was found."""
    tokenizer = ""
    if KINDS[encoder.kind].has_tokenizer:
        tokenizer = f", tokenizer from {encoder.tokenizer}" if encoder.tokenizer else ", no tokenizer in or beside it"
    notes = "".join(f", {note}" for note in getattr(encoder.arrays, "notes", ()))
    return f"{encoder.path}: {KINDS[encoder.kind].title}, {len(encoder.arrays)} arrays{notes}{tokenizer}"


def summary(weights: ModelWeights) -> str:
    """One line on what the model is, for the user to compare with what it should be."""
    stored, model = weights.stored, weights.stored.model
    parts = [
        f"{model.depth} blocks of {model.hidden_size}, {model.num_heads} heads",
        f"{model.num_classes} classes" if model.num_classes else f"{model.max_text_tokens} tokens of {model.text_dim}",
        f"{stored.resolution} px, position scale {stored.position_scale:g}, latent scale {stored.latent_scale:g}",
    ]
    parts += ["micro-conditions"] if model.micro_condition else []
    parts += [f"key/value compression in {sum(r > 1 for r in model.kv_compress)} blocks"] if model.kv_compress else []
    parts += ["qk-norm"] if model.qk_norm else []
    parts += [f"a ControlNet of {weights.control.num_copies} copied blocks"] if weights.control else []
    if stored.path_drop:
        parts.append("trained to do without blocks {} to {}, for guidance by that".format(*stored.path_drop))
    if stored.guidance == "none":
        parts.append(f"drawn with {stored.sampler} in {stored.num_steps} step(s) without guidance")
    parts += ["no null caption (--null-text adds it)"] if stored.null_text == "missing" else []
    return "; ".join(parts)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    return make_parser(__doc__).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
