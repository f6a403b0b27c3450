"""Snapshots of averages, and the model of any length that tools.average makes of them."""

import shutil

import numpy as np
import pytest
from tiny_run import tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.checkpoints.snapshots import FOLDER, snapshot_steps
from pixart_jax.config import check_config
from pixart_jax.conversion import averages
from pixart_jax.conversion.stored_arrays import StoredArrays
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.training.loop import train_and_evaluate
from tools import average

THIRD = "sigma_rel_0_07"


def averaged_config(data):
    config = tiny_config(data)
    config.average.update({"every": 2, "sigma_rel": "0.05,0.1,0.07", "dtype": "float32"})
    config.train.update({"num_steps": 8, "checkpoint_every": 4})
    config.sample.update({"every": 0, "retrieval_captions": 0})
    return config


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(data, workdir) of a run of eight steps that keeps three averages."""
    root = tmp_path_factory.mktemp("snapshots")
    data = write_words_data(root / "words")
    train_and_evaluate(averaged_config(data), root / "run")
    return data, root / "run"


def test_a_third_average_is_made_of_two(begun, monkeypatch):
    """All snapshots know the third; the fit is not shown it."""
    _, workdir = begun
    assert snapshot_steps(workdir) == [2, 4, 6, 8]
    read = averages.read_snapshot

    def without_third(*args):
        recorded, lengths = read(*args)
        return recorded, {name: length for name, length in lengths.items() if name != THIRD}

    monkeypatch.setattr(averages, "read_snapshot", without_third)
    found = averages.average_of_run(workdir, 0.07)
    assert len(found.kept) == 8 and found.fit.residual < 1e-5
    kept = StoredArrays(
        workdir / FOLDER / "8" / THIRD, {p: found.weights.read(p).shape for p in found.weights.paths}, {}
    )
    for path in found.weights.paths:
        np.testing.assert_allclose(found.weights.read(path), kept[path], rtol=0, atol=1e-6, err_msg=path)


def test_the_tool_writes_a_model_that_draws(begun, tmp_path, capsys):
    _, workdir = begun
    out = tmp_path / "model"
    assert average.main(["--workdir", str(workdir), "--sigma-rel", "0.08", "--out", str(out)]) == 0
    assert "step 8, fitted by 12 averages of 4 snapshots; the fit lacks" in capsys.readouterr().out
    pipeline = TextToImage.from_checkpoint(out)
    assert pipeline(CAPTIONS[:1], num_steps=2).std() > 1
    assert average.main(["--workdir", str(workdir), "--sigma-rel", "0.01", "--step", "6", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_what_is_half_written_or_of_later_is_written_again(begun, tmp_path):
    data, clean = begun
    workdir = shutil.copytree(clean, tmp_path / "run")
    # As a run leaves it that was killed in step 7, while it wrote.
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / FOLDER / "8").rename(workdir / FOLDER / "8.orbax-checkpoint-tmp")
    assert snapshot_steps(workdir) == [2, 4, 6]
    before = averages.average_of_run(workdir, 0.1)
    assert before.step == 6
    train_and_evaluate(averaged_config(data), workdir)
    assert sorted(path.name for path in (workdir / FOLDER).iterdir()) == ["2", "4", "6", "8"]
    ours, theirs = (averages.average_of_run(path, 0.06).weights for path in (workdir, clean))
    for path in theirs.paths:
        np.testing.assert_array_equal(ours.read(path), theirs.read(path))


def test_what_cannot_be_made_is_refused(begun, tmp_path):
    _, workdir = begun
    for length, step, said in [
        (0.5, None, r"must lie in \(0, 0.2887\]"),
        (0.1, 7, "no snapshot of it; it has 2, 4, 6, 8"),
    ]:
        with pytest.raises(InputError, match=said):
            averages.average_of_run(workdir, length, step)
    other = shutil.copytree(workdir, tmp_path / "run")
    (next((other / FOLDER / "4" / "progress").glob("*"))).write_text("{}")
    with pytest.raises(InputError, match=r"averages/4 is damaged: progress.*; move it away"):
        averages.average_of_run(other, 0.1)
    shutil.rmtree(other / FOLDER)
    with pytest.raises(InputError, match=r"no snapshot of averages; train with config.average.every=N"):
        averages.average_of_run(other, 0.1)


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"every": 0}, "average.sigma_rel = '0.05,0.1,0.07': only config.average.every above 0 heeds it"),
        ({"sigma_rel": "0.05,0.050"}, "average.sigma_rel = '0.05,0.050': must be lengths from 0.01"),
        ({"sigma_rel": ""}, "average.sigma_rel = '': must be lengths from 0.01"),
    ],
)
def test_settings_that_make_no_sense(settings, said):
    config = averaged_config("unused")
    config.average.update(settings)
    with pytest.raises(InputError, match=said):
        check_config(config)


def test_an_adapter_keeps_none():
    config = averaged_config("synthetic")
    config.adapter.kind = "lora"
    with pytest.raises(InputError, match=r"average.every = 2: keeps averages of a whole model"):
        check_config(config)
