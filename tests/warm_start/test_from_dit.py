"""`tools.convert --reparameterize`: the golden DiT becomes a stored PixArt with captions; all else is one error."""

import os

import flax
import jax
import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, load_arrays, load_config, model_inputs, to_nchw

from pixart_jax.conversion.stored import StoredParams, read_stored_model, restore_params
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.models.params import abstract_params, init_params
from pixart_jax.rng import stream_key
from pixart_jax.warm_start.reparameterize import TABLE_TIMESTEPS, modulation_error
from tools.convert import main

DIT = GOLDEN / "dit.pth"
SMALL = ["--num-heads=2", "--text-dim=16", "--max-text-tokens=6"]


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def restore(path):
    stored = read_stored_model(path)
    return stored, restore_params(path, abstract_params(stored.model, make_mesh()))


def flatten(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


def output(stored, params, t):
    """Of the golden case's input, with captions of two lengths and a dropped one."""
    config = load_config("dit")
    tokens, conditions = model_inputs(config, load_arrays("dit")["in/x"])
    conditions["text"] = np.random.default_rng(0).normal(size=(len(tokens), 6, stored.model.text_dim))
    conditions["text_length"] = np.array([6, 1, 4], np.int32)
    conditions["text_drop"] = np.array([False, False, True])
    parts = jax.jit(stored.model.apply)({"params": params}, tokens, np.full(len(tokens), t), **conditions)
    return np.concatenate([to_nchw(part, config, (0, 0, 8, 8)) for part in parts], axis=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The golden DiT by t500, as a directory, with α's captions."""
    path = tmp_path_factory.mktemp("start") / "model"
    convert(DIT, path, "--num-heads=2", "--reparameterize=t500")
    return path


@pytest.mark.parametrize("method,t", [("t500", 500), ("t100", 100)])
def test_the_stored_model_equals_the_dit_without_a_class(method, t, start, tmp_path):
    if method != "t500":
        convert(DIT, tmp_path / "model", *SMALL, f"--reparameterize={method}")
    stored, params = restore(start if method == "t500" else tmp_path / "model")
    np.testing.assert_allclose(output(stored, params, t), load_arrays("dit")[f"out/uncond_t{t}"], rtol=0, atol=2e-5)


def test_the_stored_model_is_alphas(start):
    stored = read_stored_model(start)
    model = stored.model
    assert (model.num_classes, model.adaln, model.text_dim, model.max_text_tokens) == (0, "single", 4096, 120)
    assert (stored.latent_scale, stored.null_text, stored.resolution) == (0.18215, "stored", 64)
    assert (stored.caption_cleaning, stored.sampler) == ("alpha", "dpm-solver-alpha")
    assert stored.provenance == {
        "source": "dit.pth",
        "format": "dit",
        "reparameterized": "from a DiT by t500, unconditional null; what it lacked from seed 0",
    }


def test_the_family_decides_captions_and_latent_scale(tmp_path):
    convert(DIT, tmp_path / "sigma", "--num-heads=2", "--reparameterize=mean", "--family=sigma", "--text-dim=16")
    stored = read_stored_model(tmp_path / "sigma")
    assert (stored.latent_scale, stored.model.max_text_tokens, stored.model.text_dim) == (0.13025, 300, 16)
    assert (stored.caption_cleaning, stored.sampler) == ("sigma", "dpm-solver")


def test_what_a_dit_lacks_is_that_of_a_run_with_the_same_seed(tmp_path):
    for seed in (0, 7):
        convert(DIT, tmp_path / str(seed), *SMALL, "--reparameterize=t500", f"--seed={seed}")
        stored, params = restore(tmp_path / str(seed))
        fresh = flatten(jax.jit(lambda key, model=stored.model: init_params(model, key))(stream_key(seed, "init")))
        for path, array in flatten(params).items():
            if path.startswith(("y_embedder/", "blocks_0/cross_attn/")):
                np.testing.assert_allclose(array, fresh[path], rtol=1e-6, err_msg=path)
        assert np.std(params["y_embedder"]["y_embedding"]) > 0
    first, second = (
        StoredParams(tmp_path / seed / "params", stored.model)["y_embedder/y_embedding"] for seed in ("0", "7")
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("source", ["orbax", "pth"])
def test_our_own_dit_gives_the_same(source, tmp_path):
    """From a directory, which says all but the family; and out again to a .pth."""
    if source == "orbax":
        convert(DIT, tmp_path / "dit", "--num-heads=2")
        convert(tmp_path / "dit", tmp_path / "model", *SMALL[1:], "--reparameterize=t500", "--family=alpha")
    else:
        convert(DIT, tmp_path / "x.pth", *SMALL, "--reparameterize=t500", "--to=pixart")
        convert(tmp_path / "x.pth", tmp_path / "model", "--num-heads=2", "--family=alpha")
    stored, params = restore(tmp_path / "model")
    expected = load_arrays("dit")["out/uncond_t500"]
    np.testing.assert_allclose(output(stored, params, 500), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("unconditional", ["null", "none"])
@pytest.mark.parametrize("method", ["t500", "mean", "t250"])
def test_prints_the_errors_of_the_method_and_the_others(method, unconditional, tmp_path, capsys):
    convert(DIT, tmp_path / "dit", "--num-heads=2")
    arguments = (f"--reparameterize={method}", f"--unconditional={unconditional}")
    capsys.readouterr()
    convert(tmp_path / "dit", tmp_path / "model", *SMALL[1:], *arguments)
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("error of the modulation"))
    assert lines[begin + 1].split() == list(dict.fromkeys([method, "t500", "mean"]))
    rows = [line.split() for line in lines[begin + 3 : begin + 3 + len(TABLE_TIMESTEPS)]]
    assert [int(row[0]) for row in rows] == list(TABLE_TIMESTEPS)

    dit, model = (
        StoredParams(tmp_path / name / "params", read_stored_model(tmp_path / name).model) for name in ("dit", "model")
    )
    error = modulation_error(dit, model, unconditional=unconditional)
    assert [row[1:3] for row in rows] == [
        [f"{blocks:.2%}", f"{final:.2%}"] for blocks, final in zip(error.blocks, error.final, strict=True)
    ]
    t500 = rows[TABLE_TIMESTEPS.index(500)]
    assert (t500[1:3] == ["0.00%", "0.00%"]) == (method == "t500")


def truncated(folder):
    state_dict = torch.load(DIT, weights_only=True)
    del state_dict["blocks.1.adaLN_modulation.1.weight"]
    torch.save(state_dict, folder / "x.pth")
    return folder / "x.pth"


def ours(folder):
    convert(GOLDEN / "sigma_plain.pth", folder / "x", "--num-heads=2", "--family=sigma")
    return folder / "x"


@pytest.mark.parametrize(
    "source,arguments,message",
    [
        (GOLDEN / "sigma_plain.pth", [], "sigma_plain.pth is a PixArt checkpoint, state_dict, "),
        (GOLDEN / "alpha_controlnet.pth", [], "only a DiT can be re-parameterized"),
        (ours, [], "x: only a DiT can be re-parameterized: a model with classes"),
        (truncated, ["--num-heads=2"], "incomplete: blocks_0/adaLN_modulation/kernel"),
        (DIT, ["--num-heads=2", "--reparameterize=t1000"], 'method=\'t1000\': give "mean", or "t" and a timestep'),
        (DIT, ["--num-heads=2", "--text-dim=0"], "text_dim=0 and max_text_tokens=120 must be at least 1"),
        (DIT, ["--num-heads=2", "--max-text-tokens=0"], "max_text_tokens=0 must be at least 1"),
        (DIT, ["--num-heads=2", "--to=diffusers", "--text-dim=16", "--null-text=x"], "x: no such file"),
    ],
)
def test_what_cannot_be_is_one_error(source, arguments, message, tmp_path, capsys):
    path = source(tmp_path) if callable(source) else source
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main([str(path), str(tmp_path / "new/target"), "--reparameterize=t500", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1 and message in error, error
    assert sorted(tmp_path.iterdir()) == before


def test_options_that_nothing_heeds_are_refused(tmp_path, capsys):
    assert main([str(DIT), str(tmp_path / "model"), *SMALL, "--seed=1", "--unconditional=none"]) == 2
    error = capsys.readouterr().err
    assert "nothing heeds --unconditional, --text-dim, --max-text-tokens, --seed" in error
    assert not os.listdir(tmp_path)
