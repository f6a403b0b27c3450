"""A run, a converted model or an adapter to a model hub, with a card made of what the run has recorded.

python -m tools.publish runs/mine me/mine                       # shows what would go up, and the card; sends nothing
python -m tools.publish runs/mine me/mine --license openrail++ --push
python -m tools.publish runs/mine me/mine --to diffusers --encoders weights/sigma-1024 --license openrail++ --push
python -m tools.publish runs/style me/style --base-model PixArt-alpha/PixArt-Sigma-XL-2-512-MS    # its LoRA, for PEFT
python -m tools.publish weights/alpha-1024 me/alpha --run runs/mine       # what tools.convert wrote of a run

Whoever has pixart_jax draws from it: TextToImage.from_pretrained("me/mine").
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.commands import (
    GOES_ON,
    command,
    name_argument,
    path_argument,
    quieten_libraries,
    text_argument,
    tool,
    with_commands,
)
from pixart_jax.config import load_config
from pixart_jax.conversion.formats.lora_writing import ADAPTER_WRITERS
from pixart_jax.data.hub_client import as_bytes
from pixart_jax.errors import InputError
from pixart_jax.files.typed_json import read_bytes
from pixart_jax.hub.card import Asked, make_card
from pixart_jax.hub.contents import CARD, IMAGES, Contents, look
from pixart_jax.hub.facts import Facts, read_facts
from pixart_jax.hub.upload import push

from . import convert

FORMATS = ("orbax", "diffusers", "controlnet", *(name for name in ADAPTER_WRITERS))
# What a run is published as, by config.adapter.kind.
USUAL = {"full": "orbax", "lora": "peft", "controlnet": "controlnet"}
# Of a folder with more files there is one line.
LISTED = 12


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    quieten_libraries()
    check_arguments(args)
    source, facts = args.source, None
    if is_run(source):
        source, step = converted(args)
        facts = read_facts(args.source, step)
    contents = look(source)
    if args.run:
        facts = read_facts(args.run, step_of(contents, args.run))
    card = card_of(args, contents, facts)
    pictures = facts.pictures if facts else {}
    images = {f"{IMAGES}/{name}.png": picture.path for name, picture in pictures.items()}
    files: dict[str, pathlib.Path | bytes] = {**contents.files, **images, CARD: card.encode()}
    show(args.repo, contents, files, card)
    if not args.push:
        print("nothing was uploaded; the same command with --push does it")
        if not args.license and not args.card:
            print("which asks for a --license: that of the weights it began with, if there were any, or your own")
        return 0
    where = push(files, args.repo, private=args.private, message=args.message or f"{contents.kind.title}")
    print(f"{args.repo}: {where}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises InputError for all that can be refused before anything is converted."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo, re.ASCII):
        raise InputError(f"{args.repo}: a repository is called owner/name, owner you or an organization of yours")
    if not args.source.exists():
        raise InputError(f"{args.source} does not exist")
    if args.card and (args.license or args.license_name or args.license_link or args.base_model or args.note):
        raise InputError(
            "--card is the whole card, and nothing heeds --license, --base-model and --note; leave them out"
        )
    if args.card:
        read_card(args.card)
    if (args.license == "other") != bool(args.license_name and args.license_link):
        raise InputError("--license other, and no other, takes a --license-name and a --license-link")
    if args.push and not args.license and not args.card:
        raise InputError(
            "--license is missing: that of the weights it began with, as their page on the hub says (a fine-tune of "
            "them is under it too), or your own, such as apache-2.0"
        )
    if is_run(args.source):
        if args.run:
            raise InputError(f"{args.source} is a run itself; leave --run out")
        return
    for name in ("to", "encoders", "out"):
        if getattr(args, name):
            raise InputError(f"--{name}: {args.source} is no run, and is published as it is; leave it out")
    if args.ema is not None:
        raise InputError(f"{args.source} is no run: it holds one set of weights; leave --ema and --no-ema out")
    if args.run and not is_run(args.run):
        raise InputError(f"--run {args.run} is not the workdir of a run: it has no checkpoints/")


def is_run(path: pathlib.Path) -> bool:
    return (path / "checkpoints").is_dir()


def converted(args: argparse.Namespace) -> tuple[pathlib.Path, int]:
    """What is published of a run, and the step of its weights: converted by now, or by the same command before."""
    workdir = args.source
    form = args.to or USUAL[load_config(workdir).adapter.kind]
    step = Checkpoints(workdir, read_only=True).require_step()
    name = f"step_{step}-{'ema' if args.ema is not False else 'raw'}-{form}"
    if args.encoders:
        # Others are another pipeline.
        name += f"-{hashlib.sha256(os.fsencode(os.path.abspath(args.encoders))).hexdigest()[:8]}"
    target = args.out or workdir / "published" / name
    if form == "diffusers-lora":
        target = target.with_name(f"{target.name}.safetensors") if target.suffix != ".safetensors" else target
    if target.exists():
        print(f"{target}: converted before; remove it to have it converted anew", flush=True)
        return target, step
    options = ["--to", form]
    options += ["--encoders", args.encoders] if args.encoders else []
    options += ["--ema" if args.ema else "--no-ema"] if args.ema is not None else []
    if convert.main([str(workdir), str(target), *options]):
        raise InputError(f"{workdir} is not converted, as said above")
    if Checkpoints(workdir, read_only=True).require_step() != step:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise InputError(f"{workdir}: the run goes on, and has saved meanwhile; give the same command again")
    return target, step


def step_of(contents: Contents, workdir: pathlib.Path) -> int:
    """That of the weights, where they say it; else the newest of the run that they are of."""
    said = contents.stored.provenance.get("weights", "") if contents.stored else ""
    found = re.fullmatch(r"\w+ of step (\d+)", said)
    return int(found[1]) if found else Checkpoints(workdir, read_only=True).require_step()


def card_of(args: argparse.Namespace, contents: Contents, facts: Facts | None) -> str:
    if args.card:
        return read_card(args.card)
    names = ("repo", "license", "license_name", "license_link", "base_model", "note")
    return make_card(Asked(**{name: getattr(args, name) for name in names}), contents, facts)


def read_card(path: pathlib.Path) -> str:
    """Raises InputError unless it is text in UTF-8, as hubs read it."""
    cure = "name a card that is Markdown in UTF-8"
    try:
        text = read_bytes(path, cure).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--card {path}: is no text in UTF-8 (byte {error.start}: {error.reason}); {cure}") from error
    if "\0" in text:
        raise InputError(f"--card {path}: is no text, it holds zero bytes; {cure}")
    return text


def show(repo: str, contents: Contents, files: Mapping[str, pathlib.Path | bytes], card: str) -> None:
    """Says what would go up."""
    sizes = {name: len(data) if isinstance(data, bytes) else data.stat().st_size for name, data in files.items()}
    print(f"{repo}: {contents.kind.title}, {len(files)} files, {as_bytes(sum(sizes.values()))}")
    folders = collections.Counter(name.split("/")[0] for name in sizes)
    lines: dict[str, list[int]] = {}
    for name in sorted(sizes):
        folder = name.split("/")[0]
        lines.setdefault(f"{folder}/" if folders[folder] > LISTED else name, []).append(sizes[name])
    for name, found in lines.items():
        print(f"  {as_bytes(sum(found)):>12}  {name}" + (f"  {len(found)} files" if len(found) > 1 else ""))
    if contents.left_out:
        print(f"not of the model, and left out: {', '.join(contents.left_out)}")
    print(f"{CARD}:")
    print("\n".join(f"  {line}".rstrip() for line in card.splitlines()), flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("publish"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SRC", type=path_argument, help="a run's workdir, what tools.convert wrote, or an adapter"
    )
    parser.add_argument("repo", metavar="USER/NAME", help="the repository on the hub; it is made where there is none")
    parser.add_argument("--push", action="store_true", help="upload; without it, what would go up is shown")
    parser.add_argument("--private", action="store_true", help="a new repository is seen by its owner alone")
    parser.add_argument("--message", type=text_argument, help="of the commit")
    card = parser.add_argument_group("the card")
    card.add_argument("--license", default="", help="of the hub's list, such as apache-2.0 or openrail++; or other")
    card.add_argument("--license-name", type=text_argument, default="", help="of --license other")
    card.add_argument("--license-link", type=text_argument, default="", help="of --license other")
    card.add_argument(
        "--base-model",
        default="",
        metavar="OWNER/NAME",
        help="the hub's id of what it began with, where the run does not tell",
    )
    card.add_argument("--note", type=text_argument, default="", help="a paragraph of your own")
    card.add_argument(
        "--run", type=path_argument, metavar="DIR", help="the run that has trained SRC, for what it recorded"
    )
    card.add_argument("--card", type=path_argument, metavar="FILE", help="a card of your own instead")
    run = parser.add_argument_group("of a run")
    run.add_argument("--to", choices=FORMATS, help="the format (default: ours; of an adapter peft, or controlnet)")
    run.add_argument(
        "--encoders",
        type=name_argument,
        metavar="DIR",
        help="as of tools.convert: makes --to diffusers a whole pipeline",
    )
    run.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None, help="the averaged weights, or not (default: yes)"
    )
    run.add_argument(
        "--out", type=path_argument, metavar="DIR", help="what is converted goes there (default: SRC/published/...)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
