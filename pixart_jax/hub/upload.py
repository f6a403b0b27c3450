"""Files to a repository of a hub, in one commit: all of them, or none."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping

from pixart_jax.data.hub_client import one_line
from pixart_jax.errors import InputError

# Each wait is twice the one before. The client's own retries come before these.
_ATTEMPTS = 5
_WAIT_SECONDS = 1.0


def push(files: Mapping[str, pathlib.Path | bytes], repo: str, *, private: bool, message: str) -> str:
    """Makes a repository where there is none, and commits files to it.

    What has arrived before a failure is not sent again. What lies on the hub in a folder that is published anew, and is
    not among its files any more, goes with the same commit; other files there stay.

    Args:
      files: contents, or where they are, by path in the repository.
      repo: owner/name.
      private: of a new repository.
      message: of the commit.

    Returns:
      Where the commit can be seen.

    Raises:
      InputError: there is no token, it may not write there, the hub refuses something, or it cannot be reached.
    """
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationCopy,
        CommitOperationDelete,
        HfApi,
        constants,
        get_token,
    )

    token_page = f"{constants.ENDPOINT}/settings/tokens"
    if get_token() is None:
        raise InputError(
            f"there is no token: make one that may write on {token_page}, and set HF_TOKEN to it, or give it "
            "to `hf auth login`"
        )
    api = HfApi()
    with _errors_explained(repo, token_page):
        api.create_repo(repo, private=private or None, exist_ok=True)
        owned = {name.split("/")[0] for name in files if "/" in name}
        old = [name for name in api.list_repo_files(repo) if name not in files and name.split("/")[0] in owned]
        for name in old:
            print(f"{repo}: {name} is of what was there before, and goes", flush=True)
        for attempt in range(_ATTEMPTS):
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                CommitOperationAdd(name, data if isinstance(data, bytes) else str(data)) for name, data in files.items()
            ]
            operations += [CommitOperationDelete(name) for name in old]
            try:
                return api.create_commit(repo, operations, commit_message=message).commit_url
            except Exception as error:
                if attempt == _ATTEMPTS - 1 or not _may_pass(error):
                    raise
                seconds = _WAIT_SECONDS * 2**attempt
                print(f"{repo}: {one_line(_cause(error))}; again in {seconds:g} s", flush=True)
                time.sleep(seconds)
    raise AssertionError  # The last attempt returns or raises.


def _cause(error: Exception) -> Exception:
    """What the client's own RuntimeError, that names the file, came of."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _may_pass(error: Exception) -> bool:
    """Whether the same may succeed a little later."""
    from huggingface_hub import errors

    cause = _cause(error)
    if isinstance(cause, errors.HfHubHTTPError):
        return cause.response.status_code >= 500 or cause.response.status_code in (408, 409, 412, 429)
    return isinstance(cause, errors.HTTPError | ConnectionError | TimeoutError)


@contextlib.contextmanager
def _errors_explained(repo: str, token_page: str) -> Iterator[None]:
    """Turns what the hub's client raises into InputError."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"{repo} is no name of a repository, which are like owner/name: {one_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, and nothing can be uploaded; unset it") from error
    except json.JSONDecodeError as error:  # A page instead, as proxies show it to who is not logged in.
        raise InputError(
            f"{constants.ENDPOINT} does not answer as a hub does; check the proxy and HF_ENDPOINT"
        ) from error
    except ValueError as error:  # Of the card's head.
        raise InputError(f"{repo}: the hub refuses the card: {' '.join(str(error).split())}") from error
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            if status == 401:
                raise InputError(f"the hub does not know the token; make another on {token_page}") from error
            if status == 403:
                raise InputError(
                    f"the token may not write to {repo}: {one_line(cause)}; name a repository of your own, or make a "
                    f"token that may write there on {token_page}"
                ) from error
            raise InputError(f"{repo}: the hub refuses: {one_line(cause)}; {_AGAIN}") from error
        if isinstance(cause, errors.HTTPError | OSError | RuntimeError):
            raise InputError(
                f"{repo}: the hub cannot be reached: {one_line(cause)}; check the network, the proxy and HF_ENDPOINT; "
                f"{_AGAIN}"
            ) from error
        raise


_AGAIN = "the same command goes on: what has arrived is not sent again"
