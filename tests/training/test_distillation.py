"""Distillation through the real loop: a student beside its frozen teacher, whole or as a LoRA, stopped and resumed."""

import json
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import read_metrics, tiny_config, write_data

from pixart_jax.adapters.guided import EMBEDDING, Guided
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import build_adapter, build_model, check_config
from pixart_jax.conversion.runs import load_run
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.diffusion.gaussian import predict_x0
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.generation.denoiser import denoiser_of
from pixart_jax.generation.opening import open_run
from pixart_jax.samplers import build_sampler
from pixart_jax.samplers.program import EMBEDDED, make_sample_fn
from pixart_jax.training.loop import train_and_evaluate
from tools.bench.train import synthetic_batch

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
    # The LoRA's is one that takes the guidance too, and drops inputs, which its teacher does not.
    more = (
        {"adapter.lora.rank": 2, "adapter.lora.dropout": 0.25, "objective.guidance_to": 9.0} if kind == "lora" else {}
    )
    settings = {"adapter.kind": kind} | more
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


def test_a_student_that_takes_the_guidance(teacher, tmp_path):
    """It begins as its teacher, is called once a step with the scale it is asked for, and needs no teacher to draw."""
    settings = {"objective.guidance": 1.0, "objective.guidance_to": 9.0, "optimizer.learning_rate": 3e-2}
    config = student_config(teacher, 2, **settings, **{"optimizer.warmup_steps": 0, "optimizer.grad_clip": 1e9})
    config.sample.every = 0
    train_and_evaluate(config, str(tmp_path / "run"))
    model = build_model(config)
    adapter = build_adapter(config, model)
    assert isinstance(adapter, Guided)

    _, base = teacher
    weights = load_run(base, ema=True)
    params = flax.traverse_util.unflatten_dict({path: weights.read(path) for path in weights.paths}, sep="/")
    begun, _ = adapter.split(params, jax.random.key(0))
    base.rename(base.with_name("away"))
    fields, _ = open_run(tmp_path / "run", True, make_mesh(), jnp.float32, True, {"text_encoder": "t", "vae": "v"})
    student = fields["weights"]()
    base.with_name("away").rename(base)
    assert fields["guidance"] == EMBEDDED and not student.frozen
    kernel = student.trained[EMBEDDING]["kernel"]
    assert kernel.shape == (256, model.hidden_size) and np.abs(kernel).max() > 0

    batch = {name: array[:2] for name, array in synthetic_batch(config).items()}
    tokens, t = batch.pop("tokens"), np.full(2, 999.0)
    predict = jax.jit(lambda trained, w: adapter.apply(trained, {}, tokens, t, guidance=w, **batch).eps)
    plain = jax.jit(lambda params: model.apply({"params": params}, tokens, t, **batch).eps)(params)
    np.testing.assert_allclose(predict(begun, np.array([1.0, 8.0], np.float32)), plain, rtol=0, atol=1e-6)

    rows = []

    def counted(apply):
        def call(params, tokens, t, **conditions):
            rows.append(len(tokens))
            return apply(params, tokens, t, **conditions)

        return call

    # As a pipeline has it, which asks for what it can of the text once.
    parts = types.SimpleNamespace(
        model=model, over=fields["over"], wrap=counted, text_once=True, needs={}, path_drop=None
    )
    apply, prepare = denoiser_of(parts)
    schedule = linear_schedule()
    sampler = build_sampler("lcm", schedule, 1)
    draw = make_sample_fn(apply, schedule, sampler, guidance=EMBEDDED, prepare=prepare)
    keys = jax.random.split(jax.random.key(0), 2)
    found = [draw(student, tokens, keys, batch, {}, scale)[0] for scale in (2.0, 9.0)]
    assert rows == [2] and np.abs(found[0] - found[1]).max() > 1e-4
    eps = predict(student.trained, np.full(2, 8.0, np.float32))
    expected = predict_x0(schedule, tokens, t.astype(int), eps)
    np.testing.assert_allclose(found[1], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    with pytest.raises(InputError, match="has learnt to take the guidance as an input"):
        load_run(tmp_path / "run", ema=True)


def test_what_cannot_be_distilled_is_refused(teacher):
    for settings, said in [
        ({"init_from": ""}, "config.init_from"),
        ({"train.min_snr_gamma": 5.0}, "config.train.min_snr_gamma"),
        ({"adapter.kind": "controlnet", "adapter.controlnet.num_copies": 1}, "config.adapter.kind"),
        ({"objective.distance": "l1"}, "config.objective.distance"),
        ({"objective.solver_steps": 30}, "config.objective.solver_steps = 30: must divide the 1000 timesteps"),
        ({"objective.guidance_to": 4.0}, "config.objective.guidance_to = 4.0: must be more than"),
        ({"objective.kind": "denoising", "objective.guidance_to": 9.0}, "config.objective.guidance_to"),
    ]:
        with pytest.raises(InputError, match=said):
            check_config(student_config(teacher, 2, **settings))
