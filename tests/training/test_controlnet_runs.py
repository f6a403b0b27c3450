"""A ControlNet is trained by the real loop: from data with controls, resumed bit for bit, its base never saved."""

import jax
import numpy as np
import pytest
from seam_parts import flat
from tiny_run import read_metrics, tiny_config, write_data

from pixart_jax.adapters.controlnet import Controlled
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.cluster.ending import Ending
from pixart_jax.config import build_model
from pixart_jax.conversion.control import control_shapes
from pixart_jax.conversion.controlnet_files import open_controlnet
from pixart_jax.data.examples import make_example
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.errors import InputError
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.plan import open_plan
from pixart_jax.warm_start.trained_adapter import load_trained_adapter
from tools import convert


def controlled(data, init_from=""):
    config = tiny_config(data)
    config.adapter.kind = "controlnet"
    config.adapter.controlnet.num_copies = 1
    config.init_from = str(init_from)
    config.train.update({"num_steps": 6, "log_every": 1, "checkpoint_every": 3})
    config.sample.update({"every": 6, "num_images": 2, "num_steps": 2})
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("control") / "data", control="given")


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run of the whole model, on the same data: without the adapter their control pictures are left aside."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    config = tiny_config(data)
    config.train.update({"num_steps": 2, "log_every": 1})
    config.sample.every = 0
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def run(data, base, tmp_path_factory):
    """A finished one."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train_and_evaluate(controlled(data, base), workdir)
    return workdir


def checksums_of(workdir, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    return {name: checkpoints.recorded_checksums(step, name) for name in ("params", "ema_params", "opt_state")}


def test_copies_alone_are_trained_and_saved(run, data):
    config = controlled(data)
    model = build_model(config)
    assert checksums_of(run, 6)["params"].keys() == control_shapes(model, 1).keys()
    found = open_controlnet(run, model, ema=False)
    arrays = {path: found.read(path) for path in found.paths}
    assert all(np.abs(arrays[f"copies/after_proj/{name}"]).max() > 0 for name in ("kernel", "bias"))
    assert np.abs(arrays["before_proj/kernel"]).max() > 0
    rows = read_metrics(run)
    assert len({row["loss"] for row in rows}) == 6 and all(np.isfinite(row["loss"]) for row in rows)
    assert (run / "samples.png").exists()


def test_it_goes_on_bit_identical(run, data, base, tmp_path):
    config = controlled(data, base)
    config.train.num_steps = 3
    train_and_evaluate(config, tmp_path / "run")
    config.train.num_steps = 6
    train_and_evaluate(config, tmp_path / "run")
    assert checksums_of(tmp_path / "run", 6) == checksums_of(run, 6)
    assert read_metrics(tmp_path / "run") == read_metrics(run)


def test_it_begins_as_its_base(run, base, data):
    """The first step's loss is what the base has on the same batch, whatever the control is."""
    config = controlled(data, base)
    with open_plan(config, run.with_name("again"), Ending()) as plan:
        adapter = plan.program.adapter
        assert isinstance(adapter, Controlled)
        batch = next(plan.data.batches)
        state, frozen = plan.program.birth.start(plan.weights)
        plan.data.batches.close()
    conditions = {name: value for name, value in batch.items() if name != "tokens"}
    t = np.full(len(batch["tokens"]), 500)
    found = jax.jit(lambda *args: adapter.apply(*args, batch["tokens"], t, **conditions))(state.params, frozen)
    del conditions["control"]
    plain = jax.jit(lambda params: plan.program.model.apply({"params": params}, batch["tokens"], t, **conditions))(
        frozen
    )
    np.testing.assert_allclose(found.eps, plain.eps, rtol=0, atol=2e-6)
    assert flat(state.params).keys() == control_shapes(plan.program.model, 1).keys()


def test_one_that_was_trained_is_trained_further(run, base, data, tmp_path):
    """From the run, from PixArt's .pth and from the research project's folder: the same numbers to the last bit."""
    config = controlled(data, base)
    config.adapter.init_from = str(run)
    with open_plan(config, tmp_path / "run", Ending()) as plan:
        wanted = dict(plan.trained)
        state, _ = plan.program.birth.start(plan.weights, plan.trained)
        plan.data.batches.close()
    found = Checkpoints(run, read_only=True).restore_params(plan.program.state.params, ema=True)
    for tree in (flat(state.params), flat(state.ema_params), wanted):
        assert tree.keys() == flat(found).keys()
        for name, array in flat(found).items():
            np.testing.assert_array_equal(tree[name], array, err_msg=name)
    assert convert.main([str(run), str(tmp_path / "folder"), "--to", "controlnet"]) == 0
    assert convert.main([str(run), str(tmp_path / "it.pth"), "--to", "pixart"]) == 0
    for name in ("folder", "it.pth"):
        config.adapter.init_from = str(tmp_path / name)
        again = load_trained_adapter(config)
        assert again.keys() == wanted.keys()
        for path, array in wanted.items():
            np.testing.assert_array_equal(again[path], array, err_msg=path)


def test_a_control_picture_becomes_tokens_as_its_picture_does(data):
    """In the same order, by the same scale, with noise of its own, and no number of the others changes."""
    config = controlled(data)
    config.model.update({"kv_compress_ratio": 2, "kv_compress_from": 0})
    spec, reader = batch_spec(config), ShardReader(data)
    sample = next(reader[i] for i in range(len(reader)) if reader[i].bucket == (32, 32))
    example = make_example(sample, reader.manifest, spec)
    swapped = type(sample)(**vars(sample) | {"latent_mean": sample.control_mean, "latent_std": sample.control_std})
    np.testing.assert_array_equal(example["control"], make_example(swapped, reader.manifest, spec)["tokens"])
    assert not np.array_equal(example["control"], example["tokens"])
    drawn = [make_example(sample, reader.manifest, spec, np.random.default_rng(3)) for _ in range(2)]
    noise = drawn[0]["control"] - example["control"]
    assert 0.05 < noise.std() < 0.2  # 0.2 times the scale of 0.5.
    config.adapter.kind = "full"
    plain = make_example(sample, reader.manifest, batch_spec(config), np.random.default_rng(3))
    assert plain.keys() == drawn[1].keys() - {"control"}
    for name, array in plain.items():
        np.testing.assert_array_equal(array, drawn[1][name], err_msg=name)


def test_what_cannot_be_trained_is_refused(data, base, tmp_path):
    def refused(message, change, source=data, init_from=base):
        config = controlled(source, init_from)
        change(config)
        with pytest.raises(InputError, match=message):
            train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("config.init_from = '': .*name them", lambda c: None, init_from="")
    refused("num_copies = 2: must be below the 2 blocks", lambda c: c.adapter.controlnet.update({"num_copies": 2}))
    refused("config.sample.prompts = .*no control pictures", lambda c: c.sample.update({"prompts": "a cat"}))
    refused(
        "config.adapter.init_from = .*holds no ControlNet", lambda c: c.adapter.update({"init_from": str(tmp_path)})
    )
    refused(
        "config.adapter.init_from = .*is for a LoRA or a ControlNet",
        lambda c: c.adapter.update({"kind": "full", "init_from": str(tmp_path)}),
    )
    plain = write_data(tmp_path / "plain")
    refused("the data have no control pictures.*--control hed", lambda c: None, source=plain)
