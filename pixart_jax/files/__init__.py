"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pixart_jax.errors import InputError


def local_path(text: str | os.PathLike, option: str, *, any_bytes: bool = False) -> pathlib.Path:
    """What an option names, on this machine's file systems, with the home folder in place of a ~.

    Args:
      any_bytes: the name need not be in UTF-8, as nothing but Python opens it.

    Raises:
      InputError: it is empty, as of a variable that is not set, a URL, of which a folder would be made otherwise, or
        not in UTF-8, in which Orbax writes every name.
    """
    text = os.fspath(text)
    try:
        is_utf8 = os.fsencode(text) == text.encode()
    except UnicodeEncodeError:  # Bytes that are none came as surrogates, or the locale lacks the character.
        is_utf8 = False
    if not (is_utf8 or any_bytes):
        raise InputError(
            f"{option} {text!a}: is not in UTF-8, in which names are stored; rename it, or, where only the locale is "
            "another, set PYTHONUTF8=1"
        )
    if not text.strip():
        raise InputError(f"{option} is empty: name a file or a folder")
    refuse_url(text, option)
    path = pathlib.Path(text)
    try:
        return path.expanduser()
    except RuntimeError as error:  # Of a user that there is not.
        raise InputError(f"{option} {text}: {error}") from error


def refuse_url(text: str, option: str) -> None:
    """Raises InputError for a URL where only this machine's file systems are read: it would just not be found."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise InputError(f"{option} {text}: is a URL; name a local path: copy it, or mount the bucket")


def refuse_patterns(path: str | os.PathLike, option: str) -> None:
    """Raises InputError for a path that Orbax would write and not find again, as it takes * ? [ ] \\ for a pattern."""
    if found := re.search(r"[*?\[\]\\]", str(pathlib.Path(path).absolute())):
        raise InputError(
            f"{option} {path}: Orbax, which stores the arrays, takes {found[0]!r} in a path for a pattern; name, or "
            "rename, a folder without any of * ? [ ] \\"
        )


def open_regular(path: str | bytes | os.PathLike) -> BinaryIO:
    """Opens a file for reading, unless it is a device, a pipe or a socket: some have no end, others never begin.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    _check_regular(os.stat(path), path)
    # The file may have become another one since.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str | bytes | os.PathLike) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a device, a pipe or a socket, not a regular file", path)


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a hidden file beside `path`, then renames it; after an exception `path` is as it was.

    The hidden file has the first of the names `.NAME.0.tmp`, `.NAME.1.tmp`, ... that no living process writes, on any
    host where the file system's locks reach, so that what a kill leaves behind is taken over by the next writer.
    """
    path = pathlib.Path(path)
    temporary, descriptor = _claim_temporary(path)
    try:
        # Closed before it is renamed, as network file systems say only then that there was no room; the lock lives on
        # in the other descriptor.
        with os.fdopen(os.dup(descriptor), "wb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _claim_temporary(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """An empty hidden file beside `path` that is this writer's alone, and its descriptor, which holds the lock."""
    for number in itertools.count():
        temporary = path.with_name(f".{path.name}.{number}.tmp")
        try:
            descriptor, is_new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, is_new = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK), False
            except OSError:  # Another user's, no file, or renamed by now.
                continue
        try:
            # It may also have been renamed between our opening it and its writer's letting go.
            if _lock(descriptor, is_new) and _is_named(temporary, descriptor):
                os.ftruncate(descriptor, 0)
                return temporary, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise AssertionError


def _lock(descriptor: int, is_new: bool) -> bool:
    """Whether a file is this writer's now; where there are no locks, only a new one is."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return is_new
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _is_named(path: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def check_writable(folder: str | os.PathLike, option: str) -> None:
    """Finds out, before long work, whether files can be written to a folder, which need not be there; leaves nothing.

    Raises:
      InputError: they cannot: a file is in the way, there are no rights, a name is too long, the disk is full.
    """
    folder = pathlib.Path(folder).absolute()
    made: list[pathlib.Path] = []
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                path.mkdir()
                made.append(path)
        # As long as the name of any picture on its way to disk.
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".write-test-".ljust(100, "x"))
        # Closed before it is removed, as closing may say that there was no room, and NamedTemporaryFile would leave it.
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(bytes(1 << 16))
        finally:
            os.unlink(name)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{option} {folder}: {error.filename} is no folder; name another") from error
    except OSError as error:
        raise InputError(
            f"{option} {folder}: cannot be written to ({error.strerror}); name another folder, or make room"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # Another process has found it useful.
            for path in reversed(made):
                path.rmdir()


def check_space(folder: str | os.PathLike, num_bytes: int) -> None:
    """Raises what a full disk does, before anything is written: writers of many files drown their error in logs."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC, f"no space left: {num_bytes / 1e6:,.1f} MB are to be written, {free / 1e6:,.1f} MB are free"
        )


@contextlib.contextmanager
def errors_naming(path: str | os.PathLike, done: str = "written") -> Iterator[None]:
    """Raises InputError, which says that the path cannot be written, where the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be {done}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why something could not be read or written, in one line; TensorStore says it in many."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else next(iter(str(error).splitlines()), type(error).__name__)


def fsync(path: str | os.PathLike) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
