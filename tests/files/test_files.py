"""Paths that users give: of this machine, in the home folder, and such as Orbax can find again."""

import argparse
import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from golden_cases import GOLDEN
from tiny_run import ROOT, tiny_config

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.commands import path_argument
from pixart_jax.conversion.stored_arrays import stored_leaves
from pixart_jax.errors import InputError
from pixart_jax.files import check_writable, local_path, refuse_patterns, write_atomically
from pixart_jax.training.loop import train_and_evaluate
from tools import convert, sample

SETTINGS = ["--resolution=64", "--position-scale=1", "--num-heads=2", "--family=sigma"]


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://bucket/a", "https://host/a.pth", "file:///tmp/a", "gs:/b"])
def test_a_url_is_no_folder(text, capsys):
    with pytest.raises(InputError, match="is a URL; name a local path"):
        local_path(text, "--out")
    with pytest.raises(argparse.ArgumentTypeError, match="is a URL"):
        path_argument(text)
    with pytest.raises(SystemExit, match="2"):
        sample.main(["--checkpoint", text, "--prompt", "a"])
    assert f"argument --checkpoint: the path {text}: is a URL" in capsys.readouterr().err


def test_an_empty_path_and_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs", "--out") == tmp_path / "runs" and local_path("a:b", "--out") == pathlib.Path("a:b")
    for text in ("", "  "):
        with pytest.raises(InputError, match="--out is empty: name a file or a folder"):
            local_path(text, "--out")
    with pytest.raises(InputError, match="--out ~nobody-here"):
        local_path("~nobody-here/a", "--out")


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "", "run[1]"])
def test_training_refuses_a_workdir_before_anything_is_read(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--workdir"):
        train_and_evaluate(tiny_config("synthetic"), workdir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m[1]/out", "a*", "what?", "x]", "a\\b"])
def test_what_orbax_takes_for_a_pattern_is_refused(name, tmp_path, capsys):
    path = tmp_path / name
    with pytest.raises(InputError, match="in a path for a pattern; name, or rename, a folder without any"):
        refuse_patterns(path, "DST")
    path.parent.mkdir(exist_ok=True)
    assert convert.main([str(GOLDEN / "sigma_plain.pth"), str(path), *SETTINGS]) == 2
    assert "in a path for a pattern" in capsys.readouterr().err and not path.exists()
    with pytest.raises(InputError, match="in a path for a pattern"):
        Checkpoints(path)
    with pytest.raises(InputError, match="in a path for a pattern"):
        stored_leaves(path / "params")


@pytest.mark.parametrize("name", ["a b", "ä", "100%", "a#b", "{x}", "a,b", "a'b", "%20"])
def test_other_odd_names_are_read_back(name, tmp_path):
    target = tmp_path / name / "out"
    target.parent.mkdir()
    assert convert.main([str(GOLDEN / "sigma_plain.pth"), str(target), *SETTINGS]) == 0
    assert all(np.prod(leaf.shape) > 0 for leaf in stored_leaves(target / "params").values())
    assert convert.main([str(target), str(tmp_path / name / "back.pth"), "--to=pixart"]) == 0


_WRITE_HALF = """
import os, sys
from pixart_jax.files import write_atomically
def write(file):
    file.write(b"half of what was to be written")
    file.flush()
    print("half", flush=True)
    if sys.stdin.read() == "kill":
        os.kill(os.getpid(), 9)
write_atomically(sys.argv[1], write)
"""


def _writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE_HALF, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert process.stdout.readline() == "half\n"
    return process


@pytest.mark.parametrize("name", ["contact_sheet.png", "run.json", "a b.npy", "0.tmp"])
def test_what_a_kill_leaves_behind_is_taken_over_by_the_next_writer(name, tmp_path):
    path = tmp_path / name
    for _ in range(2):
        _writer(path).communicate("kill", timeout=60)
        assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    write_atomically(path, lambda file: file.write(b"whole"))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"whole"


def test_a_living_writer_keeps_its_file(tmp_path):
    path = tmp_path / "a.png"
    alive = _writer(path)
    write_atomically(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    alive.communicate("", timeout=60)
    assert path.read_bytes() == b"half of what was to be written" and list(tmp_path.iterdir()) == [path]


def test_two_writers_in_one_process_do_not_share_a_file(tmp_path):
    path = tmp_path / "a.png"

    def write(file):
        file.write(b"outer")
        write_atomically(path, lambda other: other.write(b"inner, longer"))

    write_atomically(path, write)
    assert path.read_bytes() == b"outer" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(code, tmp_path, monkeypatch):
    """What is there may be a living writer's, so it stays."""
    path, other = tmp_path / "a.png", tmp_path / ".a.png.0.tmp"
    other.write_bytes(b"of another")

    def flock(descriptor, operation):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    write_atomically(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole" and other.read_bytes() == b"of another" and len(list(tmp_path.iterdir())) == 2


# A file too large is told of as a full disk is: by the write, or, of what is left in the buffer, by closing.
@pytest.mark.parametrize("room", [0, 1 << 15, (1 << 16) - 4096, (1 << 16) - 1])
def test_no_room_is_said_whenever_it_is_noticed_and_nothing_is_left(room, tmp_path):
    code = (
        "import resource, sys; from pixart_jax.files import check_writable\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "check_writable(sys.argv[1], '--out')"
    )
    for folder in (tmp_path, tmp_path / "new" / "deeper"):
        found = subprocess.run(
            [sys.executable, "-c", code, folder, str(room)], cwd=ROOT, capture_output=True, text=True
        )
        last = found.stderr.splitlines()[-1]
        assert f"InputError: --out {folder}: cannot be written to ({os.strerror(errno.EFBIG)})" in last
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_took_meanwhile_stays(tmp_path, monkeypatch):
    def rmdir(path):
        (path / "of another").touch()
        os.rmdir(path)

    monkeypatch.setattr(pathlib.Path, "rmdir", rmdir)
    check_writable(tmp_path / "new" / "deeper", "--out")
    assert (tmp_path / "new" / "deeper" / "of another").exists()


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_exception_leaves_the_file_as_it_was(error, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"before")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a", write)
