"""What a chapter is, what it is given, and how what came of it is kept."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from pixart_jax.config import read_config_file
from pixart_jax.errors import InputError
from pixart_jax.figures.images import save_png
from pixart_jax.files import write_atomically
from pixart_jax.files.typed_json import parse, read_bytes
from pixart_jax.generation.adaptation import AdapterFile
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.interrupts import INTERRUPTED
from pixart_jax.main import log_the_run
from pixart_jax.training.loop import train_and_evaluate

from .glyphs import Glyphs

RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Desk:
    """What a chapter works with.

    Attributes:
      glyphs: the data set that the base was trained on.
      base: workdir of the quickstart's run.
      folder: the chapter's own; what a killed command left in it is there again.
      settings: changes "KEY=VALUE" of every run's config, to try things; they have the last word.
    """

    glyphs: Glyphs
    base: pathlib.Path
    folder: pathlib.Path
    settings: Sequence[str] = ()

    def train(self, name: str, *settings: str) -> pathlib.Path:
        """Trains the quickstart's config with other settings, from the base's weights and without sample grids; goes on
        with what is there. Returns its workdir, `folder`/`name`."""
        own = [f"data.source={self.glyphs.folder}", f"init_from={self.base}"]
        own += ["sample.every=0", "sample.retrieval_captions=0"]
        config = read_config_file("quickstart", [f"--config.{s}" for s in (*own, *settings, *self.settings)])
        train_and_evaluate(config, self.folder / name)
        return self.folder / name

    def use(self, tool: ModuleType, *arguments: str | pathlib.Path) -> None:
        """Runs another tool's command; raises InputError where it fails."""
        code = tool.main([str(argument) for argument in arguments])
        log_the_run()  # Which the other one has made quiet.
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise InputError(f"{tool.__name__} could not do its part of {self.folder}, for the reason above")

    def pipeline(
        self, workdir: pathlib.Path | None = None, adapters: Sequence[AdapterFile | pathlib.Path] = ()
    ) -> TextToImage:
        """That of a run, or of the base."""
        return TextToImage.from_checkpoint(workdir or self.base, adapters=adapters, keep_loaded=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a chapter.

    Attributes:
      rows: of its table, each by column; all have the same columns, the first of which says what a row is.
      figures: numbers to be told in sentences, by name.
      pictures: uint8[H, W, 3] by name, the most telling first. They become extras_NAME.png.
    """

    rows: Sequence[Mapping[str, str | int | float]]
    figures: Mapping[str, float]
    pictures: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chapter:
    """One thing shown.

    Attributes:
      name: of its folder, and for --only.
      title: of its table.
      run: shows it; trains by `Desk.train`, so that it goes on after a kill.
    """

    name: str
    title: str
    run: Callable[[Desk], Result]


def write_result(folder: pathlib.Path, result: Result, **about: Any) -> dict[str, Any]:
    """Keeps a result in the chapter's folder, its pictures first; returns what `read_result` will."""
    for name, picture in result.pictures.items():
        save_png(folder / f"extras_{name}.png", picture)
    content = {
        "rows": [dict(row) for row in result.rows],
        "figures": dict(result.figures),
        "pictures": [f"extras_{name}.png" for name in result.pictures],
        **about,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULT_FILE, lambda file: file.write(text.encode()))
    return content


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """What `write_result` kept; None where the chapter is not finished.

    Raises:
      InputError: it is damaged.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    cure = f"delete {folder} to make it again"
    try:
        content = parse(read_bytes(path, cure))
        table_of(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no chapter's result ({error}); {cure}") from error
    if missing := [name for name in content["pictures"] if not (folder / name).is_file()]:
        raise InputError(f"{folder / missing[0]} is missing; {cure}")
    return content


def table_of(content: Mapping[str, Any]) -> str:
    """A result's rows in Markdown."""
    columns = list(content["rows"][0])
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in content["rows"]:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
