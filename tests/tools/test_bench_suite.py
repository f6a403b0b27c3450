"""tools.bench --suite: its rows can run, what fails is said, and what is there is not measured again."""

import json
import sys

import pytest

from pixart_jax.config import check_config, read_config_file
from tools.bench import suite
from tools.bench.__main__ import BENCHMARKS, main
from tools.bench.suite import FIGURES, TABLE, Row, known, rows, run_suite


@pytest.mark.parametrize("name", ["gpu", "rehearsal"])
def test_every_row_has_a_config_that_can_be(name):
    for row in rows(name):
        arguments = [argument.format(batch=row.batches[0]) for argument in row.arguments]
        assert arguments[0].removeprefix("--what=") in BENCHMARKS
        assert list(row.batches) == sorted(row.batches, reverse=True)
        if config := next((each.partition("=")[2] for each in arguments if each.startswith("--config=")), None):
            check_config(read_config_file(config, [each for each in arguments if each.startswith("--config.")]))


def test_a_rehearsal_has_the_rows_of_the_real_one():
    real, rehearsed = rows("gpu"), rows("rehearsal")
    assert [row.name for row in real] == [row.name for row in rehearsed]
    assert len({row.name for row in real}) == len(real)
    assert sum(row.minutes for row in real[:5]) <= 25


def test_a_rehearsal(tmp_path, capsys):
    """Attention and a training step in processes of their own, and a table of them."""
    plan = [row for row in rows("rehearsal") if row.name in ("attention, heads of 72", "train 512 px")]
    assert run_suite(["--suite=rehearsal", f"--out={tmp_path}"], plan) == 0
    found = known(tmp_path / FIGURES)
    attention = [figures for figures in found if figures["row"] == plan[0].name]
    # Plain and blockwise, to 64 tokens and to 8 of text, forward and backward.
    assert len(attention) == 8 and {figures["keys"] for figures in attention} == {64, 8}
    assert all(figures["max_difference"] < 1e-5 for figures in attention if figures["implementation"] == "blockwise")
    (train,) = [figures for figures in found if figures["row"] == plan[1].name]
    assert (train["remat"], train["batch_size"], train["batch"]) == ("dots", 2, 2)
    text = (tmp_path / TABLE).read_text()
    assert text.count("\n| attention, heads of 72 |") == 8 and "\n| train 512 px |" in text
    assert "blockwise 64→8, backward" in text and "Measured on: cpu" in text
    # What is there is not measured again.
    capsys.readouterr()
    before = (tmp_path / FIGURES).read_text()
    assert run_suite(["--suite=rehearsal", f"--out={tmp_path}"], plan) == 0
    assert (tmp_path / FIGURES).read_text() == before and text in capsys.readouterr().out + "\n"


@pytest.fixture
def contender(monkeypatch):
    """In place of tools.bench: a program that is given what to print, and what with."""

    def be(code):
        popen = suite.subprocess.Popen
        monkeypatch.setattr(
            suite.subprocess, "Popen", lambda command, **how: popen([sys.executable, "-c", code, *command[3:]], **how)
        )

    return be


def test_the_next_smaller_batch_where_memory_runs_out(tmp_path, contender, capsys):
    contender(
        "import sys; batch = int(sys.argv[1])\n"
        "if batch > 2: sys.exit('RESOURCE_EXHAUSTED: Out of memory')\n"
        'print(\'{"seconds": 0.5, "images_per_second": %d}\' % batch)'
    )
    plan = [Row("a", ("{batch}",), (8, 4, 2, 1)), Row("b", ("{batch}",), (8, 4))]
    assert run_suite(["--suite=gpu", f"--out={tmp_path}"], plan) == 0
    a, b = known(tmp_path / FIGURES)
    assert (a["row"], a["batch"], a["images_per_second"]) == ("a", 2, 2)
    assert (b["row"], b["batch"], b["failed"]) == ("b", 4, "out of memory")
    assert "batch 8: out of memory" in capsys.readouterr().err


def test_what_takes_too_long_leaves_what_it_has_said(tmp_path, contender):
    contender("import sys, time; print('{\"seconds\": 1}', flush=True); print('{\"sec', flush=True); time.sleep(600)")
    assert run_suite(["--suite=gpu", f"--out={tmp_path}"], [Row("slow", (), minutes=0.05)]) == 0
    said, failed = known(tmp_path / FIGURES)
    assert said["seconds"] == 1 and failed["failed"] == "not done in 3 s"


def test_flags_and_failures(tmp_path, contender, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    contender("import os, sys; print('[]'); sys.exit('no ' + os.environ['XLA_FLAGS'])")
    assert run_suite(["--suite=gpu", f"--out={tmp_path}"], [Row("flags", (), flags="--b")]) == 0
    assert [figures["failed"] for figures in known(tmp_path / FIGURES)] == ["no --a --b"]


def test_damaged_lines_count_as_not_there(tmp_path):
    path = tmp_path / FIGURES
    path.write_text(json.dumps({"row": "a"}) + '\n{"row": "b\n[]\n{"row": 1}\n')
    assert known(path) == [{"row": "a"}]


def test_options(tmp_path, capsys):
    assert main(["--suite=gpu", f"--out={tmp_path}", "--minutes=0"]) == 2
    assert "--minutes=0: must be above 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--suite=gpu", f"--out={tmp_path / 'file' / 'deeper'}"]) == 2
    assert "file is no folder; name another" in capsys.readouterr().err
