"""One owner of a folder: a second process that would write there is told who does."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from pixart_jax.errors import InputError
from pixart_jax.files import check_writable

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Owns what the lock file `path` stands for, until the block ends or the process does, however it does.

    The lock is the process's own (POSIX): it dies with it, so that a killed job can start again at once, and workers
    that it forked and left behind do not keep it. NFS, Lustre and the like hold it across hosts; where a file system
    has no locks, a warning says so. Two owners within one process are not told apart.

    Args:
      path: a file in a folder that is there. It is removed at the end, and left behind, but free, by a kill.
      what: the option and the place that is owned, as in "--workdir runs/a".

    Raises:
      InputError: another process owns it, or the folder cannot be written.
    """
    path = pathlib.Path(path)
    try:
        descriptor = _acquire(path, what)
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # The folder may have been renamed or removed.
            if _is_still(path, descriptor):
                path.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def own_target(target: pathlib.Path, option: str) -> Iterator[None]:
    """Owns a file or folder that is to be made, by a lock file beside it, until the block ends; see `hold`.

    Raises:
      InputError: its folder cannot be written, or another process makes it.
    """
    check_writable(target.parent if target.is_file() else target, option)
    target.parent.mkdir(parents=True, exist_ok=True)
    with hold(target.with_name(f".{target.name}.lock"), f"{option} {target}"):
        yield


@contextlib.contextmanager
def hold_share(folder: str | os.PathLike, index: int, count: int, what: str) -> Iterator[pathlib.Path]:
    """Owns one share of work that `count` processes divide; shares of another count would overlap with it.

    Args:
      folder: of the lock files, which is there and holds nothing else.
      what: as of `hold`.

    Yields:
      the lock file, written when the share was taken.

    Raises:
      InputError: another process has this share, or one of another count; see `hold`.
    """
    mine = pathlib.Path(folder, f"{index}-of-{count}")
    with hold(mine, f"{what} (process {index} of {count})"):
        for other in sorted(mine.parent.iterdir()):
            if not other.name.endswith(f"-of-{count}"):
                with hold(other, f"{what} (process {other.name.replace('-', ' ')})"):
                    pass
        yield mine


def _acquire(path: pathlib.Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = _owner(descriptor)
                os.close(descriptor)
                raise InputError(
                    f"{what} is being written by another process{owner}: wait for it, stop it, or name another place"
                ) from None
            if error.errno not in _WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            logging.getLogger(__name__).warning(
                "%s: this file system has no locks; see that nobody else writes there", path
            )
        # Its owner may have removed the file between our opening it and his letting go.
        if _is_still(path, descriptor):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _signature(), 0)
    return descriptor


def _is_still(path: pathlib.Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _signature() -> bytes:
    began = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    argv = os.fsencode(" ".join(sys.argv)).decode("utf-8", "replace")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "began": began, "command": argv[:1000]})
    return text.encode()


def _owner(descriptor: int) -> str:
    """Who holds it, as far as that can be read; it may be being written."""
    try:
        found = json.loads(os.pread(descriptor, 1 << 14, 0))
        return f" (pid {found['pid']} on {found['host']}, since {found['began']}: {found['command']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
