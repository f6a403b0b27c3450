"""How data sets are laid out in a folder: pictures with text files, a Hugging Face imagefolder, Parquet files."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence

from pixart_jax.data.picture_formats import extension, is_image
from pixart_jax.errors import InputError

# What names the pictures of an imagefolder.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# The words by which Hugging Face knows a split in the name of a file or folder.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in _SPLITS.items() for word in words}
_WORD = re.compile(rf"(?<![^/_.\- 0-9])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![^/_.\- 0-9])")
_SHARD = re.compile(r"(?P<split>\w[\w.]*)-\d{5}-of-\d{5}(-[0-9a-f]{16})?\.parquet")


def metadata_of(folder: str) -> str | None:
    """The path of the metadata of a folder that is an imagefolder; None of one that is not.

    Raises:
      InputError: it has several.
    """
    found = [path for name in METADATA if os.path.isfile(path := os.path.join(folder, name))]
    if len(found) > 1:
        raise InputError(f"{folder} has {' and '.join(map(os.path.basename, found))}; name the one that is to be read")
    return found[0] if found else None


def parquet_below(folder: str) -> list[str]:
    """The Parquet files in a folder and those below it, sorted; [] where there is a picture file too: the first that is
    met ends the search."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if is_image(name):
                return []
            if extension(name) == "parquet" and not name.startswith("."):
                found.append(os.path.join(parent, name))
    return sorted(found)


def split_of(path: str) -> str:
    """The split that a file is of, by its path in the data set; "" where it tells none."""
    if match := _SHARD.fullmatch(posixpath.basename(path)):
        return _WORDS.get(match["split"].lower(), match["split"])
    words = _WORD.findall(path.lower())
    return _WORDS[words[-1]] if words else ""


def of_one_split(files: Sequence[str], root: str | os.PathLike) -> list[str]:
    """The files, if they are of one split: training on a test set is nobody's wish.

    Raises:
      InputError: they are of several.
    """
    splits = splits_of(files, root)
    if len(splits) > 1:
        names = ", ".join(f"{split or 'others'} ({count})" for split, count in sorted(splits.items()))
        example = next((file for file in files if split_of(_relative(file, root)) == "train"), files[0])
        pattern = re.sub(r"\d{5}-of-\d{5}.*", "*.parquet", example)
        raise InputError(f"{root} holds files of several splits: {names}; name those of one, as in {pattern!r}")
    return list(files)


def splits_of(files: Iterable[str], root: str | os.PathLike) -> dict[str, int]:
    """How many of the files each split has."""
    counts: dict[str, int] = {}
    for file in files:
        split = split_of(_relative(file, root))
        counts[split] = counts.get(split, 0) + 1
    return counts


def _relative(file: str, root: str | os.PathLike) -> str:
    return os.path.relpath(file, root).replace(os.sep, "/")
