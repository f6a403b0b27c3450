"""A run's copy in a bucket: fetched on a machine that has lost its disk, whole or not at all."""

import json
import logging
import shutil

import fsspec
import pytest
from tiny_run import tiny_config, write_data

from pixart_jax.errors import InputError, SaveFailed
from pixart_jax.training import mirror as mirrors
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.mirror import Mirror


@pytest.fixture
def bucket():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


def run_in(folder, step, content=b"arrays"):
    """A workdir with a checkpoint, as far as a copy can tell."""
    path = folder / "checkpoints" / str(step) / "params" / "d"
    path.mkdir(parents=True)
    (path / "0").write_bytes(content)
    (path.parent / "_METADATA").write_bytes(b"")
    (folder / "metrics.jsonl").write_text(f"{step}\n")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(url, workdir):
    mirror = Mirror(url, workdir)
    mirror.start()
    mirror.close()


URL = "memory://bucket/run"


def test_a_workdir_comes_back(tmp_path, bucket):
    run_in(tmp_path / "a", 10)
    (tmp_path / "a/.lock").write_text("")
    push(URL, tmp_path / "a")
    run_in(tmp_path / "a", 20, b"newer")
    shutil.rmtree(tmp_path / "a/checkpoints/10")
    push(URL, tmp_path / "a")
    assert json.loads(bucket.cat_file("/bucket/run/checkpoints/20.json")) == {"params/_METADATA": 0, "params/d/0": 5}
    assert not bucket.exists("/bucket/run/checkpoints/10") and not bucket.exists("/bucket/run/.lock")
    fetched = Mirror(URL, tmp_path / "b")
    fetched.fetch()
    expected = {name: data for name, data in contents(tmp_path / "a").items() if name != ".lock"}
    assert contents(tmp_path / "b") == expected
    # What is there is not fetched anew, and another run does not go there.
    (tmp_path / "b/metrics.jsonl").write_text("longer")
    Mirror(URL, tmp_path / "b").fetch()
    assert (tmp_path / "b/metrics.jsonl").read_text() == "longer"
    run_in(tmp_path / "c", 5)
    with pytest.raises(InputError, match=r"config\.train\.mirror memory://.*holds the copy of another run"):
        Mirror(URL, tmp_path / "c")


def test_what_is_half_there_counts_for_nothing(tmp_path, bucket, caplog):
    run_in(tmp_path / "a", 10)
    run_in(tmp_path / "a", 20)
    run_in(tmp_path / "a", 30)
    push(URL, tmp_path / "a")
    bucket.rm("/bucket/run/checkpoints/30.json")  # As of a machine that was lost while it copied.
    bucket.pipe_file("/bucket/run/checkpoints/20/params/d/0", b"arr")
    with caplog.at_level(logging.WARNING):
        Mirror(URL, tmp_path / "b").fetch()
    assert [path.name for path in (tmp_path / "b/checkpoints").iterdir()] == ["10"]
    assert "run/checkpoints/20 cannot be read (params/d/0 has 3 bytes in place of 6)" in caplog.text
    assert not [name for name in contents(tmp_path / "b") if name.startswith(".")]


def test_a_bucket_that_fails(tmp_path, bucket, monkeypatch):
    run_in(tmp_path / "a", 10)
    mirror = Mirror(URL, tmp_path / "a")
    mirror.start()

    def fail(*_, **__):
        raise ConnectionError("503 slow down")

    monkeypatch.setattr(mirrors, "_AGAIN", 0.0)
    monkeypatch.setattr(bucket, "put_file", fail)
    with pytest.raises(
        SaveFailed, match=r"the copy in memory://bucket/run is not complete: 503 slow down; the run is whole"
    ):
        mirror.close()
    monkeypatch.setattr(bucket, "pipe_file", fail)
    with pytest.raises(InputError, match=r"cannot be written to \(503 slow down\); log in"):
        Mirror(URL, tmp_path / "a")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/somewhere", "is no URL"),
        ("memory://", "names no folder"),
        ("nothing://b/x", "Protocol not known: nothing; pip"),
    ],
)
def test_what_no_copy_can_be_at(tmp_path, url, said):
    with pytest.raises(InputError, match=f"config.train.mirror {url}: {said}"):
        Mirror(url, tmp_path)


def test_training_goes_on_on_another_machine(tmp_path, bucket):
    config = tiny_config(write_data(tmp_path / "data"))
    config.train.mirror = URL
    for number, workdir in enumerate(("first", "second"), 1):
        config.train.num_steps = number
        state = train_and_evaluate(config, tmp_path / workdir)
        assert int(state.step) == number and bucket.exists(f"/bucket/run/checkpoints/{number}.json")
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
    # Two steps, of which the second machine made one.
    rows = (tmp_path / "second/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert bucket.cat_file("/bucket/run/metrics.jsonl").decode().splitlines() == rows
    assert bucket.exists("/bucket/run/results.json")
