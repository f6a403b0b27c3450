"""Weights by their id on a model hub: what conversion reads of them is downloaded into the hub client's own cache."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import posixpath
import re
from collections.abc import Iterable, Mapping

from pixart_jax.conversion.names.lora import CONFIG_FILE, WEIGHT_FILES
from pixart_jax.data.hub_client import as_bytes, check_space, errors_explained, list_files
from pixart_jax.errors import InputError
from pixart_jax.files import refuse_url

# Files that hold weights by themselves.
_FILES = (".pth", ".pt", ".bin", ".safetensors")
# Weights in a folder with config.json; the first form that is there is taken. Variants have something between these
# names and their suffixes: fp16, in which T5 overflows, non_ema.
_STEM = "(diffusion_pytorch_model|model|pytorch_model)"
_FORMS = [
    rf"{_STEM}{form}"
    for suffix in (r"\.safetensors", r"\.bin")
    for form in (suffix, rf"(-\d+-of-\d+{suffix}|{suffix}\.index\.json)")
]
# What else is in such a folder: configurations and tokenizers, but no other weights' index.
_SMALL = r"(?!.*\.index\.).+\.(json|model|txt)"
_ENCODERS = ("text_encoder", "vae", "tokenizer", "scheduler")
# Ours, see `conversion.stored`: its marks; its encoders; and what is published beside it for people.
_OURS = ("model.json", "params/_METADATA")
_OUR_ENCODERS = ("text_encoder/", "vae/", "encoders/")
_FOR_PEOPLE = ("README.md", ".gitattributes", "images/")

# A revision with a slash cannot be told from a path, but for the hub's own.
_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>refs/(pr|convert)/\w+|[^/@]+))?(/(?P<path>.+?))?/?", re.ASCII
)


@dataclasses.dataclass(frozen=True)
class _Id:
    """owner/name@revision/path, as the user wrote it and in parts; revision may be None, path ""."""

    text: str
    repo: str
    revision: str | None
    path: str

    def with_path(self, path: str) -> str:
        """The id of something else in the repository."""
        revision = f"@{self.revision}" if self.revision else ""
        return posixpath.join(f"{self.repo}{revision}", path)


def fetch(source: str, *, encoders: bool = True) -> pathlib.Path:
    """The local path of weights, which are downloaded unless they are here or in the cache.

    Of a pipeline only what conversion reads is fetched: of each part its configuration and one form of its weights. Of
    a model in our own format, all of it.
    Without the hub, the cache has to do. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always do.

    Args:
      source: a local path; or a hub id: `owner/name`, `owner/name@revision`, or a file or folder in one of these, as
        `owner/name/transformer`. What exists locally is never an id. Of revisions with a slash, `refs/pr/…` and
        `refs/convert/…` are understood; a branch of such a name goes by its commit.
      encoders: of a whole pipeline also the text encoder, the autoencoder, the tokenizer and the scheduler.

    Returns:
      A local source as it is; else the file or folder in the cache.

    Raises:
      InputError: it is neither; the hub has no such thing, keeps it from this user, or cannot be reached; it holds
        several models (their names are listed) or none; or there is no room for it.
    """
    refuse_url(source, "the source")
    try:
        os.lstat(source)
        return pathlib.Path(source)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    match = _ID.fullmatch(source)
    if match is None:
        raise InputError(f"{source}: no such file or folder, and not a hub id like owner/name")
    wanted = _Id(source, match["repo"], match["revision"], match["path"] or "")
    with errors_explained(wanted.text, wanted.repo, wanted.revision, "model"):
        return _download(wanted, encoders)


def _download(wanted: _Id, encoders: bool) -> pathlib.Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    sizes, commit = list_files(wanted.text, wanted.repo, wanted.revision, "model")
    names = _choose(wanted, sizes, encoders)
    if commit is not None:
        absent = [n for n in names if not isinstance(try_to_load_from_cache(wanted.repo, n, revision=commit), str)]
        new, total = (sum(sizes[name] for name in some) for some in (absent, names))
        print(f"{wanted.text}: {len(names)} files, {as_bytes(total)}, of which {as_bytes(new)} to download", flush=True)
        check_space(new)
    folder = snapshot_download(
        wanted.repo,
        # Not the commit: it is by the branch that the cache is asked when the hub cannot be reached.
        revision=wanted.revision,
        allow_patterns=[glob.escape(name) for name in names],
        local_files_only=commit is None,
    )
    return pathlib.Path(folder) / wanted.path


def _choose(wanted: _Id, sizes: Mapping[str, int], encoders: bool) -> list[str]:
    """The files to fetch. Raises InputError if it is not clear which, or if there are none."""

    def inside(name: str) -> str:
        return posixpath.join(wanted.path, name)

    if wanted.path in sizes:
        if not wanted.path.endswith(_FILES):
            raise InputError(f"{wanted.text} is no file of weights, which end with {', '.join(_FILES)}")
        folder = posixpath.dirname(wanted.path)
        return [wanted.path, *_around(sizes, folder), *_present(sizes, folder, [CONFIG_FILE])]
    if all(inside(name) in sizes for name in _OURS):
        left = _FOR_PEOPLE if encoders else (*_FOR_PEOPLE, *_OUR_ENCODERS)
        return [name for name in sizes if name.startswith(inside("")) and not name.startswith(tuple(map(inside, left)))]
    if inside("model_index.json") in sizes and _weights(sizes, inside("transformer")):
        folders = [inside(name) for name in ("transformer", *(_ENCODERS if encoders else ()))]
        for folder in folders:
            if posixpath.join(folder, "config.json") in sizes and not _weights(sizes, folder):
                raise InputError(
                    f"{wanted.with_path(folder)} has no weights in a form that conversion reads: .safetensors or .bin, "
                    f"of no variant such as fp16; name {wanted.with_path(inside('transformer'))} to have that alone"
                )
        names = {name for folder in folders for name in _of_folder(sizes, folder)}
        return sorted(names | set(_around(sizes, inside("transformer"))))
    if inside("config.json") in sizes and _weights(sizes, wanted.path):
        return sorted({*_of_folder(sizes, wanted.path), *_around(sizes, wanted.path)})
    if adapter := _present(sizes, wanted.path, WEIGHT_FILES)[:1]:
        return [*adapter, *_present(sizes, wanted.path, [CONFIG_FILE])]
    there = any(name.startswith(inside("")) for name in sizes)
    offers = _offers(wanted, sizes, wanted.path) or _offers(wanted, sizes, "")
    if not offers:
        raise InputError(f"{wanted.repo} holds no weights that can be converted; name another repository")
    problem = "is not one model" if there else "is not there"
    raise InputError(f"{wanted.text} {problem}; name one of these:\n  " + "\n  ".join(offers))


def _present(sizes: Mapping[str, int], folder: str, names: Iterable[str]) -> list[str]:
    """Those of some names that a folder has."""
    return [path for name in names if (path := posixpath.join(folder, name)) in sizes]


def _of_folder(sizes: Mapping[str, int], folder: str) -> list[str]:
    for name in sizes:
        if name.endswith(".index.json") and name.removesuffix(".index.json") in sizes:
            file = name.removesuffix(".index.json")
            if posixpath.dirname(name) == folder and _weights(sizes, folder) == [file]:
                raise InputError(
                    f"{folder or 'the repository'} holds weights twice, {posixpath.basename(file)} and the shards of "
                    f"{posixpath.basename(name)}, saved at different times; download it, and move the older ones away"
                )
    own = [name for name in sizes if posixpath.dirname(name) == folder]
    return _weights(sizes, folder) + [name for name in own if re.fullmatch(_SMALL, posixpath.basename(name))]


def _weights(sizes: Mapping[str, int], folder: str) -> list[str]:
    own = [name for name in sizes if posixpath.dirname(name) == folder]
    found = ([name for name in own if re.fullmatch(form, posixpath.basename(name))] for form in _FORMS)
    return next(filter(None, found), [])


def _around(sizes: Mapping[str, int], folder: str) -> list[str]:
    """What goes with the weights in a folder: their configuration, of a transformer the pipeline's, of a text encoder
    the tokenizer."""

    def beside(name: str) -> str:
        return posixpath.join(posixpath.dirname(folder), name)

    names = [posixpath.join(folder, "config.json")]
    if posixpath.basename(folder) == "transformer":
        names += [beside(name) for name in ("model_index.json", "vae/config.json", "scheduler/scheduler_config.json")]
    if posixpath.basename(folder) == "text_encoder":
        names += _of_folder(sizes, beside("tokenizer"))
    return [name for name in names if name in sizes]


def _offers(wanted: _Id, sizes: Mapping[str, int], folder: str) -> list[str]:
    """Ids, with bytes, of all below a folder that can be converted."""
    below = [name for name in sizes if name.startswith(posixpath.join(folder, ""))]
    folders = {posixpath.dirname(name) for name in below if posixpath.basename(name) == "config.json"}
    found = {name: sum(sizes[file] for file in files) for name in folders - {""} if (files := _weights(sizes, name))}
    # A .bin is offered only as part of its folder: by itself it may be anything.
    lone = [name for name in below if name.endswith((".pth", ".pt", ".safetensors"))]
    found |= {name: sizes[name] for name in lone if posixpath.dirname(name) not in found}
    return [f"{wanted.with_path(name)} ({as_bytes(found[name])})" for name in sorted(found)]
