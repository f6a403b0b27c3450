"""A run is read while it writes, whatever is half there."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.studio.runs import check_workdir, read_run


def write_run(folder, steps=3, num_steps=10):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"num_steps": num_steps}, "data": {"batch_size": 4}}))
    lines = [{"step": 2 * i, "loss": 1 / i, "images_per_second": 8.0} for i in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_how_far_a_run_is_and_how_long_it_takes(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    assert (run.name, run.step, run.num_steps, run.rate, run.seconds_left) == ("a", 6, 10, 8.0, 2.0)
    assert run.curves["metrics"]["loss"] == [(2, 1.0), (4, 0.5), (6, pytest.approx(1 / 3))]
    assert not run.is_over and not run.problems and not run.pictures


def test_what_is_half_written_or_broken_is_named(tmp_path):
    folder = write_run(tmp_path / "a")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('broken\n{"step": 8, "loss": NaN}\n{"step": 10, "lo')
    (folder / "validation.jsonl").write_text('{"step": 4, "val/loss": 2}\n{"step": "x"}\n')
    (folder / "samples").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "samples" / "step_0000004.png")
    (folder / "samples" / "step_0000002.png").write_bytes(b"")
    (folder / "samples" / ".step_0000006.png.0.tmp").write_bytes(b"")
    run = read_run(folder)
    assert run.curves["validation"] == {"val/loss": [(4, 2.0)]}
    assert [*run.pictures["samples"]] == [2, 4]
    assert "metrics.jsonl: a number that is not finite at step 8" in run.problems
    assert "metrics.jsonl: 1 damaged lines are left out" in run.problems
    (folder / "config.json").write_text("{")
    assert any("config.json cannot be read" in problem for problem in read_run(folder).problems)


def test_a_run_that_logs_no_more_is_said_to(tmp_path):
    folder = write_run(tmp_path / "a")
    os.utime(folder / "metrics.jsonl", (1, 1))
    assert "it has stopped" in read_run(folder).problems[0]
    (folder / "results.json").write_text("{}")
    assert not read_run(folder).is_over
    done = write_run(tmp_path / "b", 5)
    (done / "results.json").write_text("{}")
    assert read_run(done).is_over and read_run(done).seconds_left is None


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the workdir of a run"):
        check_workdir(tmp_path)
    assert read_run(tmp_path / "gone").problems
