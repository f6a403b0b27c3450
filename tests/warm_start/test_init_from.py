"""Runs that start from weights: in the real loop, from every kind of source; a bad one stops before any work."""

import json
import re
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conversion.test_diffusers import make_transformer
from golden_cases import GOLDEN, load_state_dict
from models.t5_cases import reference_model
from resume_runs import finish, start
from tiny_pipeline import make_tokenizer
from tiny_run import MAX_TEXT_TOKENS, TEXT_DIM, tiny_config, write_config, write_data
from transformers import T5Config

from pixart_jax.config import build_model
from pixart_jax.conversion.names.diffusers import NULL_TEXT
from pixart_jax.conversion.stored import StoredParams
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.errors import InputError
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.program import Program
from tools.convert import main as convert

DIT = GOLDEN / "dit.pth"
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 3,
    "cross_attention_dim": 24,
    "caption_channels": TEXT_DIM,
    "sample_size": 4,
    "use_additional_conditions": False,
    "interpolation_scale": 1,
}


def one_step(data, **init):
    """The first update has rate 0, so that the checkpoint holds what the run started from."""
    config = tiny_config(data)
    config.model.depth = 3
    config.train.update({"num_steps": 1, "checkpoint_every": 1, "log_every": 1})
    config.sample.every = 0
    config.optimizer.weight_decay = 0.1
    config.init.update(init)
    return config


def saved(workdir, model, item="params", step=1):
    return StoredParams(workdir / "checkpoints" / str(step) / item, model).read_all()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("init_from") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """(config, workdir) of a run that has started from the golden DiT and done one step."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    config = one_step(data)
    config.init_from = str(DIT)
    train_and_evaluate(config, str(workdir))
    return config, workdir


def test_a_run_starts_from_a_dit(run):
    """With EMA and parameters alike, and it says from what."""
    config, workdir = run
    model = build_model(config)
    params, ema = saved(workdir, model), saved(workdir, model, "ema_params")
    jax.tree.map(np.testing.assert_array_equal, ema, params)
    kernel = load_state_dict("dit")["blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(params["blocks_0/mlp/fc1/kernel"][1], kernel)
    assert not np.any(params["csize_embedder/mlp_2/kernel"]) and np.any(params["csize_embedder/mlp_0/kernel"])
    record = json.loads((workdir / "init_from.json").read_text())
    assert record["init_from"] == str(DIT) and record["provenance"]["format"] == "dit"
    assert any("re-parameterized at t = 500" in line for line in record["table"])


def test_a_run_that_has_a_checkpoint_goes_on_from_it(run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.init_from = "/nowhere/at/all"
    state = train_and_evaluate(config, str(tmp_path / "run"))
    assert int(state.step) == 1
    assert json.loads((tmp_path / "run/init_from.json").read_text())["init_from"] == str(DIT)


def test_a_run_starts_from_a_run_on_other_devices(run, tmp_path):
    """From one checkpoint of it, on four devices that share the parameters, at another resolution, compressed."""
    data = write_data(tmp_path / "data", buckets=((64, 64), (32, 128), (32, 64)))
    settings = (
        f"--config.init_from={run[1] / 'checkpoints/1'}",
        "--config.init.weights=raw",
        "--config.model.depth=3",
        "--config.model.resolution=64",
        "--config.model.kv_compress_ratio=2",
        "--config.model.kv_compress_from=1",
        "--config.init.kv_compress=preserve",
        "--config.train.num_steps=1",
        "--config.train.checkpoint_every=1",
        "--config.sample.every=0",
        "--config.mesh.fsdp=2",
    )
    process = start(write_config(tmp_path / "config.py", data), tmp_path / "run", *settings, devices=4)
    output = finish(process, tmp_path / "run")
    assert "blocks_1/attn (4): the mean of each block of tokens, with a norm that preserves it" in output
    assert "positions      32 px, scale 1 → 64 px, scale 1: computed, nothing to copy" in output
    config = run[0].copy_and_resolve_references()
    before = saved(run[1], build_model(config))
    config.model.update({"resolution": 64, "kv_compress_ratio": 2, "kv_compress_from": 1})
    after = saved(tmp_path / "run", build_model(config))
    np.testing.assert_array_equal(after["t_block/kernel"], before["t_block/kernel"])
    np.testing.assert_array_equal(after["blocks_1/attn/qkv/kernel"], before["blocks_0/attn/qkv/kernel"][1:])
    record = json.loads((tmp_path / "run/init_from.json").read_text())
    assert record["provenance"]["weights"] == "params of step 1"


def test_a_run_starts_from_a_diffusers_folder(data, tmp_path):
    """Which needs the null caption that its format does not keep."""
    make_transformer(**TRANSFORMER).save_pretrained(tmp_path / "transformer")
    null_text = np.random.default_rng(0).normal(size=(MAX_TEXT_TOKENS, TEXT_DIM)).astype(np.float32)
    np.save(tmp_path / "null.npy", null_text)
    config = one_step(data)
    config.init_from = str(tmp_path / "transformer")
    with pytest.raises(
        InputError, match=r"null caption +missing +stored +the format does not keep it; set config.init"
    ):
        train_and_evaluate(config, str(tmp_path / "run"))
    config.init.null_text = str(tmp_path / "null.npy")
    train_and_evaluate(config, str(tmp_path / "run"))
    np.testing.assert_array_equal(saved(tmp_path / "run", build_model(config))[NULL_TEXT], null_text)


def test_a_text_encoder_makes_the_null_caption(data, tmp_path):
    make_transformer(**TRANSFORMER).save_pretrained(tmp_path / "transformer")
    tokenizer = make_tokenizer()
    sizes = {"d_model": TEXT_DIM, "d_kv": 4, "num_heads": 2, "d_ff": 16, "num_layers": 1}
    t5 = reference_model(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes))
    t5.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert convert([str(tmp_path / "text_encoder"), str(tmp_path / "t5")]) == 0
    config = one_step(data, null_text=str(tmp_path / "t5"))
    config.init_from = str(tmp_path / "transformer")
    train_and_evaluate(config, str(tmp_path / "run"))
    found = saved(tmp_path / "run", build_model(config))[NULL_TEXT]
    inputs = tokenizer("", padding="max_length", max_length=MAX_TEXT_TOKENS, return_tensors="pt")
    with torch.no_grad():
        expected = t5(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


def test_the_state_at_the_start():
    config = one_step("")
    program = Program(config, make_mesh())
    abstract, tx = program.state, program.birth.tx
    flat = flax.traverse_util.flatten_dict(abstract.params, sep="/")
    rng = np.random.default_rng(0)
    arrays = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}
    given = dict(arrays)
    state, frozen = program.birth.start(arrays)
    assert frozen == {}
    assert not arrays and int(state.step) == 0
    for tree in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, flax.traverse_util.flatten_dict(tree, sep="/"), given)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, tx.init(jax.tree.map(jnp.asarray, state.params)))
    same = jax.tree.map(
        lambda leaf, wanted: leaf.sharding == wanted.sharding and leaf.dtype == wanted.dtype, state, abstract
    )
    assert all(jax.tree.leaves(same))


def missing(run, folder):
    return folder / "nothing"


def truncated(run, folder):
    (folder / "x.pth").write_bytes(DIT.read_bytes()[:-20000])
    return folder / "x.pth"


def orbax_without_a_file(run, folder):
    assert convert([str(DIT), str(folder / "x"), "--num-heads=2"]) == 0
    largest = max((folder / "x/params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.unlink()
    return folder / "x"


def run_without_a_file(run, folder):
    shutil.copytree(run[1], folder / "x")
    files = (path for path in (folder / "x/checkpoints/1/ema_params").rglob("*") if path.is_file())
    max(files, key=lambda path: path.stat().st_size).unlink()
    return folder / "x"


def run_without_a_checkpoint(run, folder):
    shutil.copytree(run[1], folder / "x")
    shutil.rmtree(folder / "x/checkpoints/1")
    return folder / "x"


def step_without_a_checkpoint(run, folder):
    return run[1] / "checkpoints/7"


def not_finite(run, folder):
    state_dict = torch.load(DIT, weights_only=True)
    state_dict["blocks.1.mlp.fc1.bias"][3] = float("inf")
    torch.save(state_dict, folder / "x.pth")
    return folder / "x.pth"


def other_architecture(run, folder):
    return GOLDEN / "sigma_kv_compress_qk_norm.pth"


@pytest.mark.parametrize(
    "source,init,message",
    [
        (missing, {}, "nothing: no such file or folder"),
        (truncated, {}, "x.pth is damaged, or no PyTorch file"),
        (orbax_without_a_file, {}, "damaged"),
        (run_without_a_file, {}, "damaged"),
        (run_without_a_checkpoint, {}, "no checkpoint yet"),
        (step_without_a_checkpoint, {}, "7: no such file or folder"),
        (not_finite, {}, r"blocks\.1\.mlp\.fc1\.bias: .* are NaN or infinite as float32"),
        (other_architecture, {}, r"text_dim +16 +8 +must be equal(.|\n)*qk_norm +True +False +must be equal"),
        (lambda run, folder: DIT, {"weights": "ema"}, "holds one set of weights; leave out .* config.init.weights"),
        (lambda run, folder: DIT, {"null_text": "x.npy"}, "config.init.null_text: x.npy: no such file"),
        (lambda run, folder: DIT, {"reparameterize": "500"}, "config.init.reparameterize = '500': must be none, mean"),
        (lambda run, folder: DIT, {"kv_compress": "x"}, "config.init.kv_compress = 'x': must be one of reference, "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_source_is_one_error_before_any_work(source, init, message, run, data, tmp_path, compilations):
    config = one_step(data, **init)
    path = source(run, tmp_path)
    config.init_from = str(path)
    compilations.clear()
    with pytest.raises(InputError) as error:
        train_and_evaluate(config, str(tmp_path / "run"))
    assert re.search(message, str(error.value)), error.value
    assert str(error.value).startswith("config.init")
    assert not (tmp_path / "run").exists() and not compilations
