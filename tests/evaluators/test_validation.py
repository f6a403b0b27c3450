"""The evaluation loss: what it is, what it does not depend on, and that training does not notice it."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from resume_runs import finish, start
from tiny_run import read_metrics, tiny_config, write_config, write_data

from pixart_jax.config import check_config, eval_timesteps
from pixart_jax.data.examples import make_example
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.shards.manifest import read_manifest
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.diffusion.schedule import linear_schedule
from pixart_jax.errors import InputError
from pixart_jax.evaluators.validation import HeldOut, Validation, make_eval_step
from pixart_jax.models.params import apply_of
from pixart_jax.rng import stream_key
from pixart_jax.tokens import patchify
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.inputs.held_out import eval_batch_size, open_held_out
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program

TIMESTEPS = (20, 500, 990)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "held_out", num_samples=11)


def eval_config(data, held_out):
    config = tiny_config(data)
    config.sample.every = 0
    config.eval.update({"source": str(held_out), "every": 4, "timesteps": "20,500,990"})
    return config


@functools.cache
def tiny_params():
    """Of a model in which everything matters: cross-attention and the last layer start at zero."""
    config = tiny_config("unused")
    program = Program(config, make_mesh())
    return program.model, jax.tree.map(lambda p: p + 0.02, program.birth.fresh()[0].params)


def make_validation(data, *, count=100, batch_size=4, seed=0, **spec):
    """A function of nothing, of those parameters."""
    model, params = tiny_params()
    spec = dataclasses.replace(batch_spec(tiny_config(data)), **spec)
    held_out = HeldOut([(ShardReader(data), read_manifest(data))], spec, count)
    step = make_eval_step(apply_of(model), linear_schedule(), TIMESTEPS, seed=seed)
    validation = Validation(held_out, step, TIMESTEPS, every=1, mesh=make_mesh(), batch_size=batch_size)
    return lambda: validation(params, lambda: None).scalars


def assert_close(ours, theirs, rtol=1e-5):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=rtol), name


def test_it_is_the_mean_squared_error_of_the_noise(held_out):
    """By hand: sample by sample, unpadded, in numpy."""
    model, params = tiny_params()
    apply = jax.jit(lambda x_t, t, conditions: model.apply({"params": params}, x_t, t, **conditions).eps)
    manifest, samples = read_manifest(held_out), ShardReader(held_out)
    t = np.array(TIMESTEPS)
    signal = linear_schedule().alphas_cumprod[t][:, None, None]
    expected = []
    for i in (0, 5, 10):  # one of each shape
        example = make_example(samples[i], manifest, batch_spec(tiny_config(held_out)))
        tokens = patchify(samples[i].latent_mean * manifest.latent_scale, 2)  # and nothing drawn from the posterior
        example["positions"] = example["positions"][: len(tokens)]
        # The key of a picture and a timestep; padding does not change the noise of the real tokens.
        keys = [jax.random.fold_in(jax.random.fold_in(stream_key(0, "eval"), i), step) for step in TIMESTEPS]
        noise = np.stack([jax.random.normal(key, tokens.shape) for key in keys])
        x_t = np.float32(np.sqrt(signal) * tokens + np.sqrt(1 - signal) * noise)
        conditions = {name: np.stack([value] * len(t)) for name, value in example.items() if name != "tokens"}
        expected.append(np.square(apply(x_t, t, conditions) - noise).mean(axis=(1, 2)))
    expected = np.mean(expected, axis=0)
    found = make_validation(held_out, count=3)()
    assert [found[f"eval_mse/t{step:03d}"] for step in TIMESTEPS] == pytest.approx(expected.tolist(), rel=1e-4)
    assert found["eval_loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert np.isfinite(found["eval_vb"]) and found["eval_vb"] > 0


def test_what_it_does_not_depend_on(held_out):
    evaluate = make_validation(held_out)
    expected = evaluate()
    assert evaluate() == expected
    assert_close(make_validation(held_out, batch_size=11)(), expected)  # of 4 the last batch is filled up
    assert_close(make_validation(held_out, batch_size=1, num_tokens=9)(), expected)
    assert make_validation(held_out, seed=1)()["eval_loss"] != pytest.approx(expected["eval_loss"], rel=1e-4)


def test_selections_are_spread_and_keep_their_noise(data, held_out):
    spec = batch_spec(tiny_config(data))
    sources = [(ShardReader(path), read_manifest(path)) for path in (data, held_out)]
    few = HeldOut(sources, spec, 5)
    assert few.indices.tolist() == [0, 8, 17, 25, 34]
    batch = few.batch(few.indices)
    assert batch["index"].tolist() == few.indices.tolist() and not batch["text_drop"].any()
    for row, (path, i) in enumerate([(data, 0), (data, 8), (data, 17), (held_out, 1), (held_out, 10)]):
        expected = make_example(ShardReader(path)[i], read_manifest(path), spec)
        np.testing.assert_array_equal(batch["tokens"][row], expected["tokens"])
        np.testing.assert_array_equal(batch["text"][row], expected["text"])


def load_arrays(workdir, step):
    restore = ocp.StandardCheckpointer().restore
    return {name: restore(workdir / f"checkpoints/{step}/{name}") for name in ("params", "ema_params", "opt_state")}


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines()]


def write_rows(workdir, rows):
    (workdir / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_with_it_trains_as_one_without(data, held_out, tmp_path, compilations):
    config = eval_config(data, held_out)
    train_and_evaluate(config, str(tmp_path / "with"))
    assert compilations.count("jit(evaluate)") == 1, compilations
    # Nothing is compiled between the steps.
    assert compilations[-1] == "jit(evaluate)"
    rows = read_rows(tmp_path / "with")
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    assert rows[0].keys() == {"step", "eval_loss", "eval_vb", *(f"eval_mse/t{t:03d}" for t in TIMESTEPS)}
    assert rows[0]["eval_loss"] == pytest.approx(1, abs=0.1)  # the last layer starts at zero
    assert rows[-1]["eval_loss"] < rows[1]["eval_loss"] < rows[0]["eval_loss"]
    assert np.asarray(Image.open(tmp_path / "with/eval.png")).std() > 0

    config.eval.source = ""
    train_and_evaluate(config, str(tmp_path / "without"))
    jax.tree.map(
        np.testing.assert_array_equal, load_arrays(tmp_path / "with", 12), load_arrays(tmp_path / "without", 12)
    )
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    assert not (tmp_path / "without/eval.jsonl").exists()

    # Killed between the checkpoint of step 8 and its evaluation.
    config.eval.source = str(held_out)
    shutil.rmtree(tmp_path / "with/checkpoints/12")
    write_rows(tmp_path / "with", rows[:2])
    train_and_evaluate(config, str(tmp_path / "with"))
    assert read_rows(tmp_path / "with") == rows

    # Killed before its last evaluation; the rest on four devices.
    write_rows(tmp_path / "with", rows[:3])
    settings = (f"--config.eval.source={held_out}", "--config.eval.every=4", "--config.eval.timesteps=20,500,990")
    file = write_config(tmp_path / "config.py", data)
    process = start(file, tmp_path / "with", *settings, "--config.sample.every=0", devices=4)
    finish(process, tmp_path / "with")
    *before, last = read_rows(tmp_path / "with")
    assert before == rows[:3]
    assert_close(last, rows[3])

    # Other timesteps begin other curves.
    config.eval.timesteps = "100"
    train_and_evaluate(config, str(tmp_path / "with"))
    *before, last = read_rows(tmp_path / "with")
    assert before == rows[:3] and last.keys() == {"step", "eval_loss", "eval_vb", "eval_mse/t100"}


def test_batches_fit_devices_and_memory(data, held_out):
    config = eval_config(data, held_out)
    selection = open_held_out(config, batch_spec(config), read_manifest(data))
    config.data.batch_size = 64
    assert eval_batch_size(config, selection, 4) == 12
    config.train.accumulation_steps = 8
    assert eval_batch_size(config, selection, 4) == 8


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("source", "/nowhere/at/all", "/nowhere/at/all"),
        ("source", ",", "config.eval.source is empty"),
        ("source", "{held_out}:2", "config.eval.source = .*leave out the weights"),
        ("source", "{other}", r"config.eval.source = .*latent_scale is 0.25 in .*, 0.5 in the training data"),
        ("source", "{wide}", "wide: .*num_tokens is 4 in the model"),
        ("every", 0, "config.eval.every = 0: must be at least 1"),
        ("num_samples", 0, "config.eval.num_samples = 0: must be at least 1"),
        ("seed", -1, "config.eval.seed = -1: must lie in"),
        *(
            ("timesteps", value, "config.eval.timesteps = .*rising")
            for value in ("", "5,,7", "7,5", "5,5", "0,1000", "-1")
        ),
    ],
)
def test_bad_settings_are_refused_before_any_work(data, held_out, tmp_path, key, value, message):
    if isinstance(value, str):
        for name, fields in {"other": {"latent_scale": 0.25}, "wide": {"buckets": ((64, 64),)}}.items():
            if f"{{{name}}}" in value:
                write_data(tmp_path / name, num_samples=2, **fields)
        value = value.format(held_out=held_out, other=tmp_path / "other", wide=tmp_path / "wide")
    config = eval_config(data, held_out)
    config.eval[key] = value
    with pytest.raises(InputError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_timesteps_are_read():
    config = tiny_config("unused")
    config.eval.timesteps = "0, 7,999"
    check_config(config)
    assert eval_timesteps(config) == (0, 7, 999)
