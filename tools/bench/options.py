"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from pixart_jax.commands import command, name_argument, path_argument
from pixart_jax.config import ConfigDict, check_config, read_config_file
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable

from .peer import VARIANTS, share_memory


def make_parser(module_name: str, doc: str, *, calls: int | None = None) -> argparse.ArgumentParser:
    """With the options that all comparisons have."""
    what = module_name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"{command('bench')} --what={what}", description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)")
    if calls:
        parser.add_argument("--steps", type=int, default=calls, help="timed calls of a turn (default: %(default)s)")
    parser.add_argument(
        "--peer",
        default="auto",
        help=f"what of PyTorch to compare with: {', '.join(VARIANTS)}, several with commas between them, or none "
        "(default: compile,cudnn on a GPU, eager,compile on a CPU)",
    )
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=name_argument,
        required=True,
        help="a name in configs/, or a file; --config.key=value changes it",
    )


def add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory", type=path_argument, help="where to write (default: the system's temporary folder)"
    )


@contextlib.contextmanager
def empty_folder(directory: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """A folder in --directory, which need not be there, that goes at the end.

    Raises:
      InputError: the directory cannot be written to.
    """
    if directory:
        check_writable(directory, "--directory")
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        yield pathlib.Path(folder)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the settings of the config, which are what is left.

    Raises:
      InputError: an option is out of range.
    """
    args, settings = parser.parse_known_args(argv)
    for name in ("rounds", "steps"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"--{name}={getattr(args, name)}: must be at least 1")
    if unknown := set(args.peer.split(",")) - {*VARIANTS, "auto", "none"}:
        raise InputError(f"--peer={args.peer}: {', '.join(sorted(unknown))} is none of {', '.join(VARIANTS)}, none")
    if args.peer != "none":
        share_memory()
    return args, settings


def check_peer(args: argparse.Namespace, there: Sequence[str], why: str) -> None:
    """Raises InputError, which says why, where a peer is asked for by name that this benchmark does not compare with.

    Args:
      there: of VARIANTS.
    """
    if args.peer not in ("auto", "none") and (others := [name for name in args.peer.split(",") if name not in there]):
        raise InputError(f"--peer={','.join(others)}: {why}; leave it out")


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, ConfigDict, dict[str, object]]:
    """The options, the checked config, and what a line of figures says about it.

    Raises:
      InputError: an option or a setting that cannot be.
    """
    add_config(parser)
    args, settings = parse(parser, argv)
    config = read_config_file(args.config, settings)
    check_config(config)
    return args, config, {"config": args.config, "overrides": settings}


def numbers(name: str, text: str) -> list[int]:
    """The numbers of an option that takes several.

    Raises:
      InputError: they are none, or not above zero.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"{name}={text}: must be numbers above zero with commas between them")
    return [int(part) for part in parts]
