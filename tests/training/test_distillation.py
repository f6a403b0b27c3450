"""Distillation through the real loop: a student beside its frozen teacher, whole or as a LoRA, stopped and resumed."""

import json

import jax
import numpy as np
import pytest
from tiny_run import read_metrics, tiny_config, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import check_config
from pixart_jax.errors import InputError
from pixart_jax.training.loop import train_and_evaluate

STUDENT = {"objective.kind": "consistency", "train.ema_decay": 0.5, "sample.sampler": "lcm", "sample.num_steps": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(data, workdir of a run)"""
    root = tmp_path_factory.mktemp("teacher")
    data = write_data(root / "data")
    config = tiny_config(data)
    config.train.num_steps = 2
    config.sample.every = 0
    train_and_evaluate(config, str(root / "run"))
    return data, root / "run"


def student_config(teacher, num_steps, **settings):
    data, base = teacher
    config = tiny_config(data)
    config.update_from_flattened_dict(STUDENT | {"init_from": str(base)} | settings)
    config.train.update({"num_steps": num_steps, "log_every": 1, "checkpoint_every": 2})
    config.sample.update({"every": num_steps, "num_images": 2})
    return config


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_goes_on_as_if_never_stopped_and_saves_no_teacher(teacher, tmp_path, kind, compilations):
    settings = {"adapter.kind": kind} | ({"adapter.lora.rank": 2} if kind == "lora" else {})
    whole = train_and_evaluate(student_config(teacher, 4, **settings), str(tmp_path / "whole"))
    assert compilations.count("jit(train_step)") == 1
    train_and_evaluate(student_config(teacher, 2, **settings), str(tmp_path / "resumed"))
    resumed = train_and_evaluate(student_config(teacher, 4, **settings), str(tmp_path / "resumed"))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = [read_metrics(tmp_path / name) for name in ("whole", "resumed")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert all(row["loss"] > 0 for row in rows[0]) and (tmp_path / "whole" / "samples.png").exists()
    saved = Checkpoints(tmp_path / "whole", read_only=True)
    progress = json.loads((saved.directory / "4" / "progress" / "metadata").read_text())
    assert "teacher" not in json.dumps(progress)


def test_what_cannot_be_distilled_is_refused(teacher):
    for settings, said in [
        ({"init_from": ""}, "config.init_from"),
        ({"train.min_snr_gamma": 5.0}, "config.train.min_snr_gamma"),
        ({"adapter.kind": "controlnet", "adapter.controlnet.num_copies": 1}, "config.adapter.kind"),
        ({"objective.distance": "l1"}, "config.objective.distance"),
    ]:
        with pytest.raises(InputError, match=said):
            check_config(student_config(teacher, 2, **settings))
