"""Weights & Biases and MLflow, written to files: one run over two starts; and what fails stops no training."""

import contextlib
import importlib.util
import json
import logging
import struct
import threading
import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from pixart_jax.config.declaration import listed
from pixart_jax.errors import InputError
from pixart_jax.training import trackers
from pixart_jax.training.trackers.base import TRACKERS_FILE, Aside

CONFIG = {"train.num_steps": 6, "data.source": "x", **{f"key{i}": i for i in range(120)}}
GRID = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)


def write(workdir, steps, config, names):
    opened = trackers.open_trackers(listed(names), workdir, config)
    for tracker in opened:
        tracker.write_facts({"device_kind": "cpu", "versions": {"jax": "1"}})
        for step in steps:
            tracker.write_scalars(step, {"loss": 1 / step, "val/loss": float("nan")})
        tracker.write_images(steps[-1], {"grid": GRID, "one": GRID[0]})
        tracker.close()
        assert not tracker._failed


@pytest.fixture
def no_server(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_mlflow(tmp_path, no_server):
    from mlflow.tracking import MlflowClient

    workdir = tmp_path / "run"
    workdir.mkdir()
    write(workdir, (2, 4), CONFIG, "mlflow")
    # Killed, and gone on with from an earlier step.
    write(workdir, (4, 6), CONFIG | {"train.num_steps": 9}, "mlflow")
    client = MlflowClient(tracking_uri=(workdir / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("pixart_jax").experiment_id])
    assert found.info.run_id == json.loads((workdir / TRACKERS_FILE).read_text())["mlflow"]
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert len(found.data.params) == len(CONFIG) and found.data.params["train.num_steps"] == "6"
    tags = found.data.tags
    assert (
        tags["changed.train.num_steps"] == "9" and tags["run.device_kind"] == "cpu" and '"jax"' in tags["run.versions"]
    )
    history = [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, "loss")]
    assert history == [(2, 1 / 2), (4, 1 / 4), (4, 1 / 4), (6, 1 / 6)]
    pictures = {file.path for folder in ("grid", "one") for file in client.list_artifacts(found.info.run_id, folder)}
    names = ("grid/step_{}_0", "grid/step_{}_1", "one/step_{}")
    assert pictures == {f"{name.format(f'000000{step}')}.png" for name in names for step in (4, 6)}


def records(data):
    """Of LevelDB's log, behind a head of seven bytes: blocks of 32 KiB, in which pieces of records stand behind
    checksum, length and type (1 whole, 2 first, 3 middle, 4 last)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def whole_log(file, kind):
    """Its records up to the last, which W&B's own process may write after the run is closed."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(DecodeError):  # Half a record so far.
            found = [kind.FromString(data) for data in records(file.read_bytes())]
            if found and found[-1].HasField("exit"):
                return found
        time.sleep(0.05)
    raise AssertionError(f"{file} has no end")


def test_wandb(tmp_path, no_server):
    """Both starts write of the same run, to files as `wandb sync` sends them."""
    from wandb.proto import wandb_internal_pb2

    workdir = tmp_path / "run"
    workdir.mkdir()
    write(workdir, (2, 4), CONFIG, "wandb")
    write(workdir, (4, 6), CONFIG | {"train.num_steps": 9}, "wandb")
    name = json.loads((workdir / TRACKERS_FILE).read_text())["wandb"]
    files = sorted((workdir / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(files) == 2
    losses, settings, pictures = [], {}, set()
    for file in files:
        for record in whole_log(file, wandb_internal_pb2.Record):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "loss" in row:
                losses.append((row["step"], row["loss"]))
            pictures |= {name for name in ("grid", "one") if any(key.startswith(name) for key in row)}
            for item in (*record.run.config.update, *record.config.update):
                settings["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert losses == [(2, 1 / 2), (4, 1 / 4), (4, 1 / 4), (6, 1 / 6)]
    assert settings["train.num_steps"] == 9 and settings["run"]["device_kind"] == "cpu" and pictures == {"grid", "one"}


class Broken:
    """Fails from its second call on, or never answers."""

    def __init__(self, hangs=False):
        self.calls, self.hangs = 0, hangs
        self.let_go = threading.Event()

    def write_scalars(self, step, scalars):
        self.calls += 1
        if self.hangs:
            self.let_go.wait()
        if self.calls > 1:
            raise ConnectionError("the server is gone\nand more")

    def close(self):
        self.calls += 1


def test_a_tracker_that_fails_is_left_out(caplog):
    broken = Broken()
    tracker = Aside("theirs", broken)
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            tracker.write_scalars(step, {})
        tracker.close()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("theirs FAILED, and training goes on without it: ConnectionError: the server is gone; ")
    assert broken.calls == 2


def test_a_tracker_that_hangs_keeps_no_run_from_ending(caplog, monkeypatch):
    monkeypatch.setattr(trackers.base, "_LAST_WAIT", 0.05)
    monkeypatch.setattr(trackers.base, "_WAITING", 4)
    broken = Broken(hangs=True)
    tracker = Aside("theirs", broken)
    with caplog.at_level(logging.WARNING):
        for step in range(10):
            tracker.write_scalars(step, {})
        tracker.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "4 calls are waiting for it" in warning
    broken.let_go.set()


def test_what_cannot_begin_is_refused(tmp_path, no_server, monkeypatch):
    (tmp_path / "mlruns").write_text("in the way")
    with pytest.raises(
        InputError, match=r"config\.train\.trackers: mlflow cannot begin: .*; mend it, or leave mlflow out"
    ):
        trackers.open_trackers(["mlflow"], tmp_path, {})
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("wandb", "mlflow") else find(name))
    trackers.check_trackers(["tensorboard"])
    for name, package in {"wandb": "wandb", "mlflow": "mlflow-skinny"}.items():
        with pytest.raises(InputError, match=f"names {name}, which is not installed: pip install {package}, or"):
            trackers.check_trackers(["tensorboard", name])
