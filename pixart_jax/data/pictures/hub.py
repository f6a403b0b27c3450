"""Data sets by their id on the hub, downloaded into the hub client's own cache."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import pathlib
import posixpath
import re

from pixart_jax.data.hub_client import as_bytes, check_space, errors_explained, list_files
from pixart_jax.data.picture_formats import is_image
from pixart_jax.data.pictures.layouts import METADATA, split_of
from pixart_jax.errors import InputError

PREFIX = "hf:"
_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>refs/(pr|convert)/\w+|[^/@:]+))?(/(?P<path>[^:]+?))?/?"
    r"(:(?P<split>\w[\w.-]*))?",
    re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """A data set in the cache.

    Attributes:
      kind: "parquet", "tars" or "folder".
      files: of the first two, their paths.
      root: folder of the data set, or with "folder" that of the pictures.
    """

    kind: str
    files: list[str]
    root: pathlib.Path


def download(spec: str) -> Downloaded:
    """What `hf:OWNER/NAME[@REVISION][/PATH][:SPLIT]` names, downloaded unless it is in the cache.

    Parquet files, tars, or an imagefolder: the first of these that the repository, or the folder or pattern of PATH in
    it, holds. The split is "train" where there are several and none is named. Without the hub, the cache has to do.
    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always do.

    Raises:
      InputError: it is no such id; the hub has no such data set, keeps it from this user, or cannot be reached; it
        holds nothing that is read here, or several sets; or there is no room for it.
    """
    text = spec.removeprefix("hf://datasets/").removeprefix(PREFIX)
    match = _ID.fullmatch(text)
    if match is None:
        raise InputError(f"{spec}: write hf:OWNER/NAME[@REVISION][/PATH][:SPLIT], such as hf:lambda/pictures:train")
    repo, revision = match["repo"], match["revision"]
    with errors_explained(spec, repo, revision, "dataset"):
        from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

        sizes, commit = list_files(spec, repo, revision, "dataset")
        kind, names, below = _choose(spec, sorted(sizes), match["path"] or "", match["split"] or "")
        if commit is not None:
            kept = (try_to_load_from_cache(repo, name, repo_type="dataset", revision=commit) for name in names)
            new = sum(sizes[name] for name, path in zip(names, kept, strict=True) if not isinstance(path, str))
            total = sum(sizes[name] for name in names)
            where = constants.HF_HUB_CACHE
            print(
                f"{spec}: {len(names)} files, {as_bytes(total)}, of which {as_bytes(new)} to download to {where}",
                flush=True,
            )
            check_space(new)
        folder = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[glob.escape(name) for name in names],
            local_files_only=commit is None,
        )
    root = pathlib.Path(folder)
    if kind == "folder":
        return Downloaded(kind, [], root / below)
    return Downloaded(kind, [str(root / name) for name in names], root)


def _choose(spec: str, names: list[str], path: str, split: str) -> tuple[str, list[str], str]:
    """(kind, files, folder) of what is read."""
    is_pattern = glob.has_magic(path)
    below = [name for name in names if (fnmatch.fnmatch(name, path) if is_pattern else _is_in(name, path))]
    if not below:
        raise InputError(f"{spec}: has no {path or 'files'}; it has {_some(names)}")
    metadata = [name for name in below if posixpath.basename(name) in METADATA]
    for kind, ending in (("parquet", ".parquet"), ("tars", ".tar")):
        found = [name for name in below if name.lower().endswith(ending) and name not in metadata]
        if found:
            found = _of_split(spec, found, split)
            folders = {_without_split(posixpath.dirname(name)) for name in found}
            if len(folders) > 1 and not is_pattern:
                raise InputError(
                    f"{spec}: holds several sets: {_some(sorted(folders))}; name one of these behind the id"
                )
            return kind, found, path
    pictures = [name for name in below if is_image(name)]
    if not pictures:
        hint = f"hf:{spec.removeprefix(PREFIX).split(':')[0].split('@')[0]}@refs/convert/parquet"
        raise InputError(
            f"{spec}: holds neither Parquet files, nor .tar files, nor pictures, but {_some(below)}; the hub may have "
            f"made Parquet of it: {hint}"
        )
    folders = {posixpath.dirname(name) for name in _of_split(spec, metadata, split)} if metadata else set()
    folder = folders.pop() if len(folders) == 1 else "" if is_pattern else path
    return "folder", [name for name in names if _is_in(name, folder)], folder


def _of_split(spec: str, names: list[str], split: str) -> list[str]:
    """Those of one split."""
    splits = {name: split_of(name) for name in names}
    there = sorted(set(splits.values()))
    wanted = split or ("train" if "train" in there else there[0] if len(there) == 1 else None)
    if wanted not in there:
        raise InputError(
            f"{spec}: has the splits {', '.join(filter(None, there)) or 'of no name'}; name one, as :{there[-1]}"
        )
    return [name for name in names if splits[name] == wanted]


def _without_split(folder: str) -> str:
    return "/".join(part for part in folder.split("/") if part and not split_of(part))


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(posixpath.join(folder, "")) or not folder


def _some(names: list[str]) -> str:
    """A few names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
