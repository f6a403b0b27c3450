"""What a trained model can be made to do beside drawing captions, each thing shown on the quickstart's and measured.

    python -m tools.make_quickstart_data --out data/quickstart
    python -m pixart_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m tools.extras --data data/quickstart --base runs/quickstart --out runs/extras       # all: make extras

Goes through CHAPTERS in order. What is finished stays as it is, and what was interrupted goes on. Writes extras.md (the
tables) and extras.json into --out, and each chapter's pictures into its own folder there. docs/extras.md says what came
of it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.commands import GOES_ON, command, name_argument, path_argument, tool, with_commands
from pixart_jax.data.shards.manifest import ENCODERS
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable, write_atomically
from pixart_jax.files.locks import hold
from pixart_jax.main import log_the_run

from . import dreambooth, edges, few_steps, inpainting, one_step, style
from .chapter import Chapter, Desk, read_result, table_of, write_result
from .glyphs import Glyphs

CHAPTERS: tuple[Chapter, ...] = (
    inpainting.CHAPTER,
    style.CHAPTER,
    dreambooth.CHAPTER,
    edges.CHAPTER,
    few_steps.CHAPTER,
    one_step.CHAPTER,
)
# What all results in a folder were made of.
MADE_OF_FILE = "made_of.json"


@tool(GOES_ON)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    log_the_run()
    begin = time.perf_counter()
    chapters = chosen(args.only)
    glyphs = Glyphs.open(args.data.absolute(), args.font)
    base, out = args.base.absolute(), args.out.absolute()
    check_base(base, glyphs)
    check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    with hold(out / ".lock", f"--out {out}"):
        check_made_of(out, {"base": str(base), "step": require_step(base), "settings": list(args.set)})
        for number, chapter in enumerate(chapters):
            desk = Desk(glyphs, base, out / chapter.name, tuple(args.set))
            print(f"[{number + 1}/{len(chapters)}] {chapter.title}", flush=True)
            tell(chapter, desk)
        report(out)
    print(f"{out}/extras.md and its pictures, in {(time.perf_counter() - begin) / 60:.1f} min", flush=True)
    return 0


def tell(chapter: Chapter, desk: Desk) -> None:
    """Runs a chapter, unless its result is there."""
    if read_result(desk.folder):
        print(f"{desk.folder} is finished", flush=True)
        return
    # The time of what was interrupted is not known.
    at_once = not desk.folder.exists()
    desk.folder.mkdir(exist_ok=True)
    begin = time.perf_counter(), time.process_time()
    result = chapter.run(desk)
    seconds, cpu = (
        round(now - then) for now, then in zip((time.perf_counter(), time.process_time()), begin, strict=True)
    )
    took = {"seconds": seconds, "processor_seconds": cpu} if at_once else {}
    print(table_of(write_result(desk.folder, result, **took)), flush=True)


def report(out: pathlib.Path) -> None:
    """Writes extras.md and extras.json from the results that are there."""
    results = {chapter.name: read_result(out / chapter.name) for chapter in CHAPTERS}
    text = "\n".join(section(chapter, found) for chapter in CHAPTERS if (found := results[chapter.name]))
    write_atomically(out / "extras.md", lambda file: file.write(text.encode()))
    content = json.dumps({name: found for name, found in results.items() if found}, indent=1, ensure_ascii=False)
    write_atomically(out / "extras.json", lambda file: file.write(f"{content}\n".encode()))


def section(chapter: Chapter, found: dict[str, Any]) -> str:
    """A chapter in Markdown: its table, its figures and its pictures."""
    figures = "".join(f"- {name.replace('_', ' ')}: {value:.4g}\n" for name, value in found["figures"].items())
    pictures = "".join(f"![{chapter.title}]({chapter.name}/{name})\n" for name in found["pictures"])
    took = f"{found['seconds']} s, {found['processor_seconds']} s of processors\n\n" if "seconds" in found else ""
    return f"## {chapter.title}\n\n{table_of(found)}\n{figures}\n{took}{pictures}"


def chosen(only: Sequence[str] | None) -> list[Chapter]:
    """Those of CHAPTERS that are asked for, in their order; raises InputError for a name that none has."""
    names = [chapter.name for chapter in CHAPTERS]
    if unknown := [name for name in only or () if name not in names]:
        raise InputError(f"--only {unknown[0]}: there is no such chapter; they are {', '.join(names)}")
    return [chapter for chapter in CHAPTERS if not only or chapter.name in only]


def require_step(base: pathlib.Path) -> int:
    """The newest checkpoint of the base's run."""
    return Checkpoints(base, read_only=True).require_step()


def check_base(base: pathlib.Path, glyphs: Glyphs) -> None:
    """Raises InputError where there is no run, or one on other data."""
    require_step(base)
    theirs, ours = (folder / LINEAR_AUTOENCODER_FILE for folder in (base / ENCODERS, glyphs.folder))
    if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
        raise InputError(f"--base {base} was not trained on --data {glyphs.folder}: its autoencoder is another one")


def check_made_of(out: pathlib.Path, made_of: dict[str, Any]) -> None:
    """Raises InputError where `out` holds what was made of something else."""
    path, text = out / MADE_OF_FILE, json.dumps(made_of, indent=1, ensure_ascii=False) + "\n"
    if path.exists() and (there := path.read_text(encoding="utf-8")) != text:
        raise InputError(
            f"--out {out} was made of another base or with other settings ({' '.join(there.split())}); name another "
            "--out, or delete it"
        )
    write_atomically(path, lambda file: file.write(text.encode()))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("extras"), description=with_commands(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=path_argument, help="what tools.make_quickstart_data made")
    parser.add_argument("--base", required=True, type=path_argument, help="workdir of the quickstart's run")
    parser.add_argument("--out", required=True, type=path_argument, help="for the runs, the tables and the pictures")
    parser.add_argument(
        "--font", type=name_argument, help="colour emoji font file of the data (default: look in the usual places)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="CHAPTER", help=f"these alone: {', '.join(c.name for c in CHAPTERS)}"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a change of every run's config, to try things"
    )
    return parser.parse_args(argv)
