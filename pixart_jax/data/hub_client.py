"""What downloading from a model hub can meet, said in one clear line; and room for what is downloaded."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator

from pixart_jax.errors import InputError


def list_files(text: str, repo: str, revision: str | None, kind: str) -> tuple[dict[str, int], str | None]:
    """Bytes of each file in the repository, and its commit; None for the commit means that the hub cannot be reached,
    and the files are what the cache knows of."""
    from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree, snapshot_download

    api = HfApi()
    ask = api.dataset_info if kind == "dataset" else api.model_info
    try:
        info = ask(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
        # Mirrors may leave sizes out.
        return {file.rfilename: file.size or 0 for file in info.siblings or []}, info.sha
    # HTTPError is of whichever HTTP library the client is built on.
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise
        cause = error
    try:
        try:
            sizes = {file.path: file.size for file in get_cached_repo_tree(repo, repo_type=kind, revision=revision)}
        except errors.CachedRepoTreeNotFoundError:
            # Single files, and whole repositories by older clients, are cached without a list.
            folder = pathlib.Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
            files = (path for path in folder.rglob("*") if path.is_file())
            sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{text}: no such file or folder, and as a hub id it is not in the cache and the hub cannot be "
            f"reached: {one_line(cause)}; correct the path, or check the network, the proxy and HF_ENDPOINT"
        ) from cause
    print(f"{text}: the hub cannot be reached ({one_line(cause)}); looking in the cache", flush=True)
    return sizes, None


def check_space(new: int) -> None:
    """Raises InputError where the client's cache has no room for so many bytes."""
    from huggingface_hub import constants

    cache = pathlib.Path(constants.HF_HUB_CACHE)
    existing = next(path for path in [cache, *cache.absolute().parents] if path.exists())
    if new > (free := shutil.disk_usage(existing).free):
        raise InputError(
            f"{cache} has room for {as_bytes(free)}, {as_bytes(new)} are to be downloaded; make room, or set "
            "HF_HOME to a folder on a larger disk"
        )


@contextlib.contextmanager
def errors_explained(text: str, repo: str, revision: str | None, kind: str) -> Iterator[None]:
    """Turns what the hub's client raises into InputError.

    Args:
      text: what the user wrote.
      repo, revision: what of it is the repository's, owner/name, and the branch, tag or commit.
      kind: of repository, "model" or "dataset".
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        raise InputError(
            f"{repo} is gated; accept its licence on {page}, then set HF_TOKEN to a token of your account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repo} has no branch, tag or commit {revision}; name another") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"{text}: no such file or folder, and as a hub id there is no {kind} {repo}; correct it, or "
            "if it is private set HF_TOKEN to a token that may read it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"{text}: the hub cannot be reached, and the cache holds only part of it; run again with a network"
        ) from error
    except errors.HfHubHTTPError as error:
        raise InputError(f"{text}: the hub refuses: {one_line(error)}; check HF_TOKEN, or try again later") from error
    except OSError as error:
        if error.errno is None:
            raise _broken_off(text, error) from error
        raise InputError(
            f"{constants.HF_HUB_CACHE} cannot be written: {error.strerror}; make room, or set HF_HOME to another folder"
        ) from error
    except json.JSONDecodeError as error:  # A page instead, as proxies show it to who is not logged in.
        raise InputError(
            f"{text}: {constants.ENDPOINT} does not answer as a hub does; check the proxy and HF_ENDPOINT"
        ) from error
    # RuntimeError is how the faster of the client's two protocols fails.
    except (errors.HTTPError, errors.XetDownloadError, RuntimeError) as error:
        raise _broken_off(text, error) from error


def _broken_off(text: str, error: Exception) -> InputError:
    return InputError(
        f"{text}: the download broke off: {one_line(error)}; run it again, files that have arrived are kept"
    )


def one_line(error: Exception) -> str:
    """An error of the client in one line, without the request's address and number."""
    lines = str(error).strip().splitlines()
    return getattr(error, "server_message", None) or (lines[0] if lines else type(error).__name__)


def as_bytes(count: int) -> str:
    """ "1.5 GB"."""
    unit, scale = next(pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= pair[1] or pair[1] == 1e3)
    return f"{count / scale:,.1f} {unit}"
