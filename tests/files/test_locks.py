"""One owner of a folder, told apart by processes; nothing that a killed one leaves behind stands in the way."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from pixart_jax.errors import InputError
from pixart_jax.files import locks

_HOLD = """
import os, sys
from pixart_jax.files import locks
with locks.hold(sys.argv[1], "--workdir runs/a"):
    if sys.argv[2:] == ["fork"] and os.fork() == 0:
        import time
        print("held", flush=True)
        time.sleep(600)
    if sys.argv[2:] != ["fork"]:
        print("held", flush=True)
    sys.stdin.read()
"""


def _holder(path, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def _refused(path):
    said = r"--workdir runs/a is being written by another process .*pid \d+ on .+, since"
    with pytest.raises(InputError, match=said), locks.hold(path, "--workdir runs/a"):
        pass


def test_a_second_owner_is_refused_until_the_first_ends(tmp_path):
    first = _holder(tmp_path / ".lock")
    _refused(tmp_path / ".lock")
    _refused(tmp_path / ".lock")  # Being refused takes nothing from the first.
    first.communicate("")
    assert first.returncode == 0 and not (tmp_path / ".lock").exists()
    with locks.hold(tmp_path / ".lock", "--workdir runs/a"):
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [(), ("fork",)], ids=["alone", "with a child that lives on"])
def test_a_killed_owner_stands_in_nobodys_way(tmp_path, kind):
    first = _holder(tmp_path / ".lock", *kind)
    _refused(tmp_path / ".lock")
    first.kill()
    first.wait()
    try:
        with locks.hold(tmp_path / ".lock", "--workdir runs/a"):
            pass
    finally:
        os.killpg(first.pid, signal.SIGKILL) if kind else None


def test_a_damaged_lock_file_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff{ no json")
    with locks.hold(tmp_path / ".lock", "--workdir runs/a"):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    said = r"--out x: .*missing/\.lock cannot be written: No such file"
    with pytest.raises(InputError, match=said), locks.hold(tmp_path / "missing" / ".lock", "--out x"):
        pass


def _contend(path, log, count):
    for _ in range(count):
        while True:
            try:
                with locks.hold(path, "x"):
                    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    os.write(descriptor, b"in\n")
                    os.write(descriptor, b"out\n")
                    os.close(descriptor)
                break
            except InputError:
                continue


def test_two_are_never_inside_together(tmp_path):
    """The file is removed by each owner: no one may hold a lock on a file that is no longer there."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_contend, args=(tmp_path / "l", tmp_path / "log", 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "in\nout\n" * 180
