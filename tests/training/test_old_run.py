"""A run that the code before this package had its rooms has begun is gone on with, and drawn from."""

import json
import tarfile

import numpy as np
import pytest
from golden_cases import GOLDEN
from PIL import Image
from tiny_run import read_metrics

from pixart_jax.config import load_config
from pixart_jax.training.loop import train_and_evaluate
from tools import sample


def test_a_run_begun_before_is_gone_on_with_and_drawn_from(tmp_path):
    with tarfile.open(GOLDEN / "run_begun_before.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / "run"
    assert int(train_and_evaluate(load_config(workdir), workdir).step) == 8
    expected = [json.loads(line) for line in (tmp_path / "metrics_to_the_end.jsonl").read_text().splitlines()]
    found = read_metrics(workdir)
    assert [row["step"] for row in found] == [*range(1, 9)]
    assert found[:4] == [{name: row[name] for name in found[0]} for row in expected[:4]]
    for ours, theirs in zip(found, expected, strict=True):
        # Other compiler options than theirs: rounding differs.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    out = str(tmp_path / "pictures")
    drawn = ["--prompt", "synthetic 1", "--num-steps", "4", "--seed", "3", "--out", out]
    assert sample.main(["--checkpoint", str(workdir), *drawn]) == 0
    ours, theirs = (
        np.asarray(Image.open(path), int)
        for path in (*(tmp_path / "pictures").glob("000*.png"), tmp_path / "picture.png")
    )
    assert theirs.std() > 10 and np.abs(ours - theirs).max() <= 1
