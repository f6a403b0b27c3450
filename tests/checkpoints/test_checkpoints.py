"""Checkpoints that the disk has damaged: noticed whatever was hit, set aside, and the one before restored."""

import dataclasses
import json
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tiny_run import tiny_config, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.checkpoints.contents import Damaged, check_structure
from pixart_jax.checkpoints.state import TrainState
from pixart_jax.config import build_model
from pixart_jax.conversion.runs import load_run
from pixart_jax.conversion.stored import StoredParams
from pixart_jax.data.shards.manifest import ENCODERS, read_manifest
from pixart_jax.devices.sharding import make_mesh, replicated
from pixart_jax.encoding.registry import copy_encoders
from pixart_jax.errors import InputError
from pixart_jax.models.params import abstract_params
from pixart_jax.training.program import Program
from pixart_jax.training.record import record_config

PROGRESS = {"iterator": {"position": 41}, "pending": [{"loss": 0.1}]}


def state_of(step: int) -> TrainState:
    """What a run of no model carries: arrays that compress and that do not, and a counter."""
    rng = np.random.default_rng(step)
    params = {
        "noise": rng.normal(size=(64, 32)).astype(np.float32),
        "flat": np.full((64, 32), step, np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    ema_params = jax.tree.map(lambda leaf: leaf / 2, params)
    state = TrainState(np.asarray(step, np.int32), params, ema_params, optax.adam(1e-3).init(params))
    return jax.device_put(state, replicated(make_mesh()))


ABSTRACT = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_of(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(state_of(step), PROGRESS | {"step": step})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def restore(workdir) -> int:
    """Restores and checks every bit; the step."""
    checkpoints = Checkpoints(workdir)
    state, progress = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    step = int(state.step)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    assert progress == PROGRESS | {"step": step}
    return step


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_a_sound_checkpoint_comes_back(workdir):
    assert restore(workdir) == 2
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_changed_byte_in_any_file(workdir, saved):
    """Either it does no harm, or the checkpoint gives way: what comes back is always what was saved."""
    rng = np.random.default_rng(0)
    newest, steps = workdir / "checkpoints" / "2", []
    for path in files(saved / "checkpoints" / "2"):
        shutil.rmtree(workdir)
        shutil.copytree(saved, workdir)
        flip(newest / path.relative_to(saved / "checkpoints" / "2"), rng.integers(path.stat().st_size))
        steps.append(restore(workdir))
    assert steps.count(1) > 5


def largest(checkpoint, item):
    return max(files(checkpoint / item), key=lambda path: path.stat().st_size)


def truncate(path, size=0):
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE = {
    "item is missing": lambda checkpoint: shutil.rmtree(checkpoint / "opt_state"),
    "arrays are cut short": lambda checkpoint: truncate(largest(checkpoint, "params"), 1000),
    "arrays are empty": lambda checkpoint: truncate(largest(checkpoint, "params")),
    "arrays are missing": lambda checkpoint: largest(checkpoint, "ema_params").unlink(),
    "progress is missing": lambda checkpoint: shutil.rmtree(checkpoint / "progress"),
    "progress is cut short": lambda checkpoint: truncate(checkpoint / "progress" / "metadata", 100),
    "position in the data is another": lambda checkpoint: replace(checkpoint / "progress" / "metadata", "41", "42"),
    "tree is empty": lambda checkpoint: truncate(checkpoint / "params" / "_METADATA"),
    "tree is another": lambda checkpoint: replace(checkpoint / "params" / "_METADATA", "noise", "nOise"),
    "nothing is left": lambda checkpoint: [shutil.rmtree(checkpoint), checkpoint.mkdir()],
}


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_is_restored(damage, workdir, caplog):
    DAMAGE[damage](workdir / "checkpoints" / "2")
    assert restore(workdir) == 1
    assert "THE CHECKPOINT OF STEP 2 IS DAMAGED" in caplog.text
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2.damaged"]
    assert Checkpoints(workdir, read_only=True).latest_step == 1


def test_damage_to_what_orbax_notes_at_the_top_does_not_stand_in_the_way(workdir):
    for content in ("", "{", '{"item_handlers": 3}'):
        (workdir / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text(content)
        assert restore(workdir) in (1, 2)


@pytest.mark.parametrize("damage", ["another name", "not an array", "another shape", "none of them"])
def test_what_has_not_come_back_as_it_was_is_damage(damage):
    """Orbax goes by names and kinds that it notes itself, in files that the disk may change too."""
    abstract = {"a": jax.ShapeDtypeStruct((2, 3), np.float32), "b": {"c": jax.ShapeDtypeStruct((1,), np.int32)}}
    whole = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros(1, np.int32)}}
    check_structure(whole, abstract)
    damaged = {
        "another name": {"A": whole["a"], "b": whole["b"]},
        "not an array": whole | {"b": {"c": "text"}},
        "another shape": whole | {"a": np.zeros((3, 2), np.float32)},
        "none of them": {},
    }
    with pytest.raises(Damaged, match="has not come back as what was saved"):
        check_structure(damaged[damage], abstract)


def test_every_one_is_damaged(workdir):
    """The run stops, and does not start from scratch; nothing is moved."""
    for step in (1, 2):
        path = largest(workdir / "checkpoints" / str(step), "params")
        flip(path, path.stat().st_size // 2)
    checkpoints = Checkpoints(workdir)
    with pytest.raises(InputError, match=r"every checkpoint is damaged.*\n  step 2: .*\n  step 1: "):
        checkpoints.restore(ABSTRACT)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_second_damaged_one_of_the_same_step(workdir):
    (workdir / "checkpoints" / "2.damaged").mkdir()
    truncate(largest(workdir / "checkpoints" / "2", "params"))
    assert restore(workdir) == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2.damaged", "2.damaged2"]


def test_another_model_is_no_damage(workdir):
    other = jax.ShapeDtypeStruct((64, 33), jnp.float32, sharding=ABSTRACT.params["noise"].sharding)
    checkpoints = Checkpoints(workdir)
    with pytest.raises(InputError, match=r"2 holds another model.*\n  noise: checkpoint \(64, 32\), model \(64, 33\)"):
        checkpoints.restore(dataclasses.replace(ABSTRACT, params=ABSTRACT.params | {"noise": other}))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_waiting_has_an_end(tmp_path, monkeypatch):
    finalize, done = ocp.CheckpointManager._finalize, threading.Event()
    monkeypatch.setattr(ocp.CheckpointManager, "_finalize", lambda *args: done.wait(60) and finalize(*args))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.wait() == checkpoints.wait(0) == 0
    checkpoints.save(state_of(1), PROGRESS)
    begin = time.monotonic()
    assert 0 < checkpoints.wait(0) < checkpoints.wait(0.1)
    assert 0.1 < time.monotonic() - begin < 30
    done.set()
    assert checkpoints.wait(60) == checkpoints.wait(0) == 0
    assert Checkpoints(tmp_path, read_only=True).latest_step == 1
    checkpoints.close()


def test_a_checkpoint_from_before_checksums(workdir, caplog):
    path = workdir / "checkpoints" / "2" / "progress" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text())["progress"]))
    assert restore(workdir) == 2
    assert "from before checksums" in caplog.text


def test_what_a_killed_save_has_left_is_deleted_by_the_next_run_only(workdir):
    left = workdir / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "2", left)
    Checkpoints(workdir, read_only=True).close()
    assert left.exists()
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state_of(3), PROGRESS | {"step": 3})
    checkpoints.close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    assert restore(workdir) == 3


def test_whoever_reads_a_run_is_told_what_else_there_is(tmp_path):
    """tools.convert and init_from through load_run, tools.sample through restore_params."""
    data, workdir = write_data(tmp_path / "data", num_samples=4), tmp_path / "run"
    config = tiny_config(data)
    config.model.depth = 1
    copy_encoders(data, read_manifest(data), workdir / ENCODERS)
    record_config(workdir, config)
    model, mesh = build_model(config), make_mesh()
    state, _ = Program(config, mesh).birth.fresh()
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(dataclasses.replace(state, step=jnp.asarray(step)), {})
    checkpoints.close()

    weights = load_run(workdir, ema=True)
    np.testing.assert_array_equal(weights.read("x_embedder/kernel"), state.ema_params["x_embedder"]["kernel"])
    stored = StoredParams(workdir / "checkpoints" / "2" / "params", weights.stored.model, {"x_embedder/bias": 1})
    with pytest.raises(InputError, match="x_embedder/bias is damaged: its numbers are not those that were written"):
        stored["x_embedder/bias"]
    path = largest(workdir / "checkpoints" / "2", "ema_params")
    for place in range(100, path.stat().st_size, 100):
        flip(path, place)
    told = r"damaged: .*; the run also has that of step 1: rename .*checkpoints/2 to 2\.damaged to use"
    with pytest.raises(InputError, match=told):
        [weights.read(path) for path in load_run(workdir, ema=True).paths]
    with pytest.raises(InputError, match=told):
        Checkpoints(workdir, read_only=True).restore_params(abstract_params(model, mesh))
    Checkpoints(workdir, read_only=True).restore_params(abstract_params(model, mesh), ema=False)
    shutil.rmtree(workdir / "checkpoints" / "1")
    with pytest.raises(InputError, match="the run has no other checkpoint"):
        Checkpoints(workdir, read_only=True).restore_params(abstract_params(model, mesh))
