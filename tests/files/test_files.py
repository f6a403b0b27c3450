"""Paths that users give: of this machine, in the home folder, and such as Orbax can find again."""

import argparse
import pathlib

import numpy as np
import pytest
from golden_cases import GOLDEN
from tiny_run import tiny_config

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.commands import path_argument
from pixart_jax.conversion.stored import stored_leaves
from pixart_jax.errors import InputError
from pixart_jax.files import local_path, refuse_patterns
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
