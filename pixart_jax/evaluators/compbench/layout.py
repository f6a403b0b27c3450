"""Where T2I-CompBench's prompts, pictures and scores lie, and what they are called: as its own scripts have them.

Source: Huang et al. 2023, "T2I-CompBench"; its repository's `examples/dataset`, `GORS_finetune/inference_eval.py` and
the scripts that score.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

from pixart_jax.errors import InputError

PICTURES_PER_PROMPT = 10
# Of a prompt's first picture; the next ones count on from it, and every prompt has the same ten.
FIRST_SEED = 42
# As long as a file's name may be, in bytes, less what is put around it while it is written.
_MAX_NAME = 240

# Which scores a category is made of, by the names of `score_files.FILES`.
CATEGORIES = {
    "color": ("blip",),
    "shape": ("blip",),
    "texture": ("blip",),
    "spatial": ("spatial",),
    "non_spatial": ("clip",),
    "complex": ("blip", "spatial", "clip"),
    "numeracy": ("numeracy",),
    "3d_spatial": ("depth",),
}
# Of the benchmark's first version, which the PixArt papers report.
SIX = ("color", "shape", "texture", "spatial", "non_spatial", "complex")


def read_prompts(folder: pathlib.Path, name: str) -> tuple[str, ...]:
    """The prompts of `folder/name.txt`, one a line; of a line, what stands before a tab.

    Raises:
      InputError: the file is missing, empty, not in UTF-8, or a prompt is empty or cannot be a picture's name.
    """
    path = folder / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; --compbench names examples/dataset of the benchmark's repository"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8: {error}; copy it again") from error
    prompts = tuple(line.split("\t")[0] for line in text.rstrip().splitlines())
    if not prompts:
        raise InputError(f"{path} holds no prompt; copy it again")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"{path}, line {number}: is empty, where a prompt belongs; remove it")
        # A picture's prompt is read from its name, up to the first underscore.
        if bad := sorted(set(prompt) & {"/", "\0", "_"}):
            raise InputError(f"{path}, line {number}: {bad[0]!r} cannot stand in a picture's name; reword the prompt")
        if len(os.fsencode(picture_name(prompt, 0))) > _MAX_NAME:
            raise InputError(f"{path}, line {number}: the prompt is too long to be a picture's name; shorten it")
    return prompts


def picture_name(prompt: str, index: int) -> str:
    """index: counts over all pictures of the category."""
    return f"{prompt}_{index:06d}.png"


def seed_of(index: int) -> int:
    return FIRST_SEED + index % PICTURES_PER_PROMPT


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A category's pictures: ten of each prompt, in the prompts' order.

    Attributes:
      category: its name.
      folder: holds `samples/` with the pictures, and the scores.
      prompts: N of them.
    """

    category: str
    folder: pathlib.Path
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return PICTURES_PER_PROMPT * len(self.prompts)

    def prompt(self, index: int) -> str:
        return self.prompts[index // PICTURES_PER_PROMPT]

    def name(self, index: int) -> str:
        return picture_name(self.prompt(index), index)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name(index) for index in range(len(self)))

    def path(self, index: int) -> pathlib.Path:
        return self.folder / "samples" / self.name(index)

    def check(self) -> None:
        """Raises InputError if a picture is not there, with how many and the first of them."""
        try:
            there = set(os.listdir(self.folder / "samples"))
        except OSError as error:
            raise InputError(
                f"{self.folder / 'samples'} cannot be read: {error.strerror}; the pictures of {self.category} lie there"
            ) from error
        if missing := [name for name in self.names if name not in there]:
            raise InputError(
                f"{self.folder / 'samples'} lacks {len(missing):,} of {len(self):,} pictures: "
                f"{_first(missing)}; draw them, or name the prompts that the pictures are of"
            )

    def fingerprint(self, rows: Sequence[int]) -> str:
        """Hex digest of the names and sizes of some of the files; -1 of one that is not there."""
        digest = hashlib.sha256()
        for row in rows:
            path = self.path(row)
            digest.update(os.fsencode(f"{path.name}\0{path.stat().st_size if path.exists() else -1}\0"))
        return digest.hexdigest()


def open_pictures(root: pathlib.Path, categories: Sequence[str], prompts: pathlib.Path) -> dict[str, Pictures]:
    """The categories below `root`, each in a folder of its name, or in `root` itself where only one is asked for.

    Raises:
      InputError: see `read_prompts`.
    """
    own = len(categories) == 1 and (root / "samples").is_dir()
    return {
        name: Pictures(name, root if own else root / name, read_prompts(prompts, f"{name}_val")) for name in categories
    }


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(repr(name) for name in names[:count]) + more
