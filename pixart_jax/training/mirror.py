"""A copy of the workdir in a bucket: `config.train.mirror`, for machines whose disks go with them."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from pixart_jax.checkpoints.checkpoints import has_checkpoint
from pixart_jax.errors import InputError, SaveFailed

# In workdir and copy: whose copy it is.
_ID_FILE = "mirror_id"
_CHECKPOINTS = "checkpoints"
# Seconds between two looks for what is new, and between two tries where the bucket does not answer.
_LOOK, _AGAIN = 10.0, 30.0
_LAST_TRIES = 5


class Mirror:
    """The copy of one run's workdir, of which one process has one.

    What is copied to a bucket is never half there: a checkpoint counts once its list of files, `checkpoints/STEP.json`,
    is written, which comes last; and those before it go only then. Checkpoints are copied when Orbax has finished them,
    in a thread that no step waits for; so are the workdir's other files, as they are at that time.

    Args:
      url: a folder of anything that fsspec opens: gs://BUCKET/RUN, s3://BUCKET/RUN.
      workdir: need not be there.

    Raises:
      InputError: the package for such URLs is missing, the bucket cannot be written, or it holds another run's copy.
    """

    def __init__(self, url: str, workdir: pathlib.Path):
        self._url, self._workdir = url, workdir
        self._files, self._root = _file_system(url)
        # Sizes and times of the files as they were copied.
        self._copied: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            theirs = self._read(_ID_FILE)
            self._files.pipe_file(self._remote(".write-test"), b"x")
            self._files.rm_file(self._remote(".write-test"))
        except Exception as error:  # Each file system has its own, of accounts, buckets and networks.
            raise InputError(
                f"config.train.mirror {url}: cannot be written to ({_line(error)}); log in, or name a bucket of yours"
            ) from error
        own = workdir / _ID_FILE
        ours = own.read_bytes() if own.exists() else None
        is_new = ours is None and not has_checkpoint(workdir)
        if theirs is not None and theirs != ours and not is_new:
            raise InputError(
                f"config.train.mirror {url}: holds the copy of another run than that in {workdir}; name an empty place"
            )
        if theirs is None and self._steps():
            raise InputError(f"config.train.mirror {url}: holds checkpoints of no known run; name an empty place")
        self._id = theirs or ours or secrets.token_hex(8).encode()
        self._fetches = is_new and theirs is not None

    def fetch(self) -> None:
        """Brings the newest whole checkpoint into a workdir that has none, and the other files.

        Raises:
          InputError: none of those in the copy can be read.
        """
        if not self._fetches:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        for step in reversed(self._steps()):
            try:
                self._fetch_checkpoint(step)
                break
            except Exception as error:
                logging.warning("%s/%s/%s cannot be read (%s)", self._url, _CHECKPOINTS, step, _line(error))
        else:
            if self._steps():
                raise InputError(f"config.train.mirror {self._url}: none of its checkpoints can be read; see the log")
        for name in self._names():
            if not name.startswith((f"{_CHECKPOINTS}/", ".")):
                self._download(name, self._workdir / name)
        if steps := self._steps():
            logging.info(
                "%s has no checkpoint: went on from the copy in %s, step %d", self._workdir, self._url, steps[-1]
            )

    def start(self) -> None:
        """Begins to copy. The workdir is there."""
        (self._workdir / _ID_FILE).write_bytes(self._id)
        self._files.pipe_file(self._remote(_ID_FILE), self._id)
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copies what is left.

        Raises:
          SaveFailed: it cannot.
        """
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join()
        logging.info("copying what is left to %s", self._url)
        for number in range(_LAST_TRIES):
            try:
                self._push()
                return
            except Exception as error:
                problem = _line(error)
                logging.warning("%s cannot be written to (%s)", self._url, problem)
            time.sleep(0 if number == _LAST_TRIES - 1 else min(_AGAIN, 2.0**number))
        raise SaveFailed(
            f"the copy in {self._url} is not complete: {problem}; the run is whole in {self._workdir}: copy it from "
            "there, or give the same command again"
        )

    def _work(self) -> None:
        wait, told = _LOOK, False
        while not self._stop.wait(wait):
            try:
                self._push()
                wait, told = _LOOK, False
            except Exception as error:
                if not told:
                    logging.warning(
                        "THE COPY IN %s IS NOT UP TO DATE: %s; trying again every %g s", self._url, _line(error), _AGAIN
                    )
                wait, told = _AGAIN, True

    def _push(self) -> None:
        """Copies all that is new, checkpoints first."""
        folder = self._workdir / _CHECKPOINTS
        local = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []
        there = self._steps()
        for step in local:
            if step not in there:
                self._push_checkpoint(step)
        for step in there:
            if local and step not in local:
                self._remove_checkpoint(step)
        for path in sorted(self._workdir.rglob("*")):
            name = path.relative_to(self._workdir).as_posix()
            if name.startswith((f"{_CHECKPOINTS}/", ".")) or "/." in name or not path.is_file():
                continue
            try:
                status = path.stat()
                found = (status.st_size, status.st_mtime_ns)
                if self._copied.get(name) != found:
                    self._files.put_file(str(path), self._remote(name))
                    self._copied[name] = found
            except FileNotFoundError:  # It was renamed or removed meanwhile.
                continue

    def _push_checkpoint(self, step: int) -> None:
        folder = self._workdir / _CHECKPOINTS / str(step)
        begin, sizes = time.monotonic(), {}
        try:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(folder).as_posix()
                sizes[name] = path.stat().st_size
                self._files.put_file(str(path), self._remote(f"{_CHECKPOINTS}/{step}/{name}"))
        except FileNotFoundError:
            if folder.is_dir():
                raise
            self._remove_checkpoint(step)  # A newer one has taken its place; that is copied next.
            return
        self._files.pipe_file(self._remote(f"{_CHECKPOINTS}/{step}.json"), json.dumps(sizes).encode())
        seconds = time.monotonic() - begin
        logging.info("step %d: copied to %s, %.1f MB in %.0f s", step, self._url, sum(sizes.values()) / 1e6, seconds)

    def _remove_checkpoint(self, step: int) -> None:
        for name in (f"{_CHECKPOINTS}/{step}.json", f"{_CHECKPOINTS}/{step}"):
            if self._files.exists(self._remote(name)):
                self._files.rm(self._remote(name), recursive=True)

    def _fetch_checkpoint(self, step: int) -> None:
        sizes = json.loads(self._files.cat_file(self._remote(f"{_CHECKPOINTS}/{step}.json")))
        target = self._workdir / _CHECKPOINTS / str(step)
        temporary = self._workdir / f".fetched-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            for name, size in sizes.items():
                self._download(f"{_CHECKPOINTS}/{step}/{name}", temporary / name)
                if (found := (temporary / name).stat().st_size) != size:
                    raise OSError(f"{name} has {found} bytes in place of {size}")
            target.parent.mkdir(exist_ok=True)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _download(self, name: str, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._remote(name), str(path))

    def _steps(self) -> list[int]:
        """Of the whole checkpoints in the copy."""
        names = (name.removeprefix(f"{_CHECKPOINTS}/").removesuffix(".json") for name in self._names())
        return sorted(int(name) for name in names if name.isdecimal())

    def _names(self) -> Iterator[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._root)
        except FileNotFoundError:
            return iter(())
        return (os.path.relpath(name, self._root).replace(os.sep, "/") for name in sorted(found))

    def _read(self, name: str) -> bytes | None:
        try:
            return self._files.cat_file(self._remote(name))
        except FileNotFoundError:
            return None

    def _remote(self, name: str) -> str:
        return f"{self._root}/{name}"


def _file_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of a URL."""
    import fsspec

    if "://" not in url:
        raise InputError(f"config.train.mirror {url}: is no URL; name one such as gs://BUCKET/RUN or s3://BUCKET/RUN")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"config.train.mirror {url}: {_line(error)}; pip install gcsfs s3fs, for gs:// and s3://"
        ) from error
    root = root.rstrip("/")
    if not root.strip("/"):
        raise InputError(f"config.train.mirror {url}: names no folder; write one behind the bucket")
    return files, root


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
