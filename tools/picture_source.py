"""Options that say how a source of pictures is read, for all tools that take one."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pixart_jax.commands import path_argument
from pixart_jax.data.pictures import Pictures, open_pictures
from pixart_jax.errors import InputError

# By their names in the parsed arguments.
OPTIONS = ("data_dir", "caption_weights", "caption_column", "image_column")


def add_picture_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--data-dir", type=path_argument, help="where a list's pictures or tensorflow-datasets' data are"
    )
    parser.add_argument(
        "--caption-weights",
        default="",
        metavar="FIELD=NUMBER,...",
        help="of a list's or table's captions, e.g. prompt=0.2; 0 leaves one out",
    )
    parser.add_argument(
        "--caption-column",
        default="",
        metavar="NAME[,NAME]",
        help="of a list or table, in place of prompt, sharegpt4v, caption and text",
    )
    parser.add_argument(
        "--image-column", default="", metavar="NAME", help="of a list or table, where its name does not tell"
    )


def open_named(args: argparse.Namespace, source: str) -> tuple[Pictures, dict[str, Any]]:
    """The source, and what of it a set that is begun must not change. Says what in it is no item."""
    weights = weights_of(args.caption_weights)
    pictures = open_pictures(
        source,
        caption_weights=weights,
        data_dir=str(args.data_dir) if args.data_dir else None,
        caption_column=args.caption_column,
        image_column=args.image_column,
    )
    if pictures.others:
        others = ", ".join(f"{count} {what}" for what, count in sorted(pictures.others.items()))
        print(f"{source}: files that are no items: {others}", file=sys.stderr)
    named = {name: getattr(args, name) for name in ("caption_column", "image_column") if getattr(args, name)}
    return pictures, {"source": source, "caption_weights": weights, **named}


def weights_of(text: str) -> dict[str, float]:
    """What --caption-weights says."""
    try:
        return {name: float(value) for name, _, value in (part.partition("=") for part in text.split(",") if part)}
    except ValueError as error:
        raise InputError(f"--caption-weights {text}: must be FIELD=NUMBER,... ({error})") from error
