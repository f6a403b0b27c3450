"""Weights go in and out bit for bit; what cannot be converted is one clear error and leaves nothing behind."""

import dataclasses
import json
import os
import re
import tracemalloc

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from conversion.test_diffusers import ALPHA, SIGMA, make_transformer
from diffusers import PixArtTransformer2DModel
from golden_cases import GOLDEN, load_arrays, load_config, load_params, load_state_dict
from tiny_run import tiny_config, write_data

from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.config import position_base
from pixart_jax.conversion.formats.base import Hints
from pixart_jax.conversion.sources import open_source
from pixart_jax.conversion.stored import StoredParams, read_stored_model, restore_params
from pixart_jax.conversion.transfer import load_weights, write_diffusers, write_orbax, write_pixart
from pixart_jax.data.shards.manifest import ENCODERS, read_manifest
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.registry import copy_encoders
from pixart_jax.models.params import abstract_params, parameter_shapes
from pixart_jax.training.program import Program
from pixart_jax.training.record import record_config
from tools.convert import main

CASES = [
    "alpha_single_scale",
    "alpha_multi_scale",
    "sigma_plain",
    "sigma_kv_compress",
    "sigma_kv_compress_qk_norm",
    "dit",
]
SMALL = ["--num-heads=2", "--family=sigma"]
PLAIN_ALPHA = ALPHA | {"use_additional_conditions": False, "sample_size": 32, "interpolation_scale": 1}


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def load_torch(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def sigma(tmp_path_factory):
    """sigma_plain in our format."""
    path = tmp_path_factory.mktemp("sigma") / "model"
    convert(GOLDEN / "sigma_plain.pth", path, *SMALL)
    return path


@pytest.mark.parametrize("case", CASES)
def test_reference_checkpoints_come_back(case, tmp_path):
    convert(GOLDEN / f"{case}.pth", tmp_path / "model", *SMALL)
    convert(tmp_path / "model", tmp_path / "new/again.pth", "--to=pixart")
    before, after = load_torch(GOLDEN / f"{case}.pth"), load_torch(tmp_path / "new/again.pth")
    assert ("state_dict" in after) == ("state_dict" in before) == (case != "dit")
    before, after = before.get("state_dict", before), after.get("state_dict", after)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and after[name].is_contiguous()
        assert torch.equal(after[name], tensor), name
    assert os.listdir(tmp_path) == ["model", "new"] or os.listdir(tmp_path) == ["new", "model"]


@pytest.mark.parametrize("config", [PLAIN_ALPHA, ALPHA, SIGMA], ids=["alpha", "alpha-ms", "sigma"])
def test_diffusers_transformers_come_back(config, tmp_path):
    make_transformer(**config).save_pretrained(tmp_path / "transformer")
    convert(tmp_path / "transformer", tmp_path / "model", "--family=alpha")
    convert(tmp_path / "model", tmp_path / "again", "--to=diffusers")
    before, after = (
        safetensors.numpy.load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        for name in ("transformer", "again")
    )
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, strict=True)
    transformer, info = PixArtTransformer2DModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info.values())
    assert {key: transformer.config[key] for key in config} == config


@pytest.mark.parametrize("case", ["alpha_single_scale", "alpha_multi_scale", "sigma_plain"])
def test_diffusers_computes_the_golden_numbers(case, tmp_path):
    """From a reference checkpoint straight to diffusers, whose model must then equal the reference."""
    convert(GOLDEN / f"{case}.pth", tmp_path / "transformer", "--to=diffusers", *SMALL)
    transformer = PixArtTransformer2DModel.from_pretrained(tmp_path / "transformer")
    arrays = {name: torch.from_numpy(array) for name, array in load_arrays(case).items()}
    with torch.no_grad():
        output = transformer(
            arrays["in/x"],
            encoder_hidden_states=arrays["in/y"][:, 0],
            timestep=arrays["in/t"],
            added_cond_kwargs={
                "resolution": arrays.get("in/img_hw"),
                "aspect_ratio": arrays["in/aspect_ratio"].reshape(-1, 1) if "in/aspect_ratio" in arrays else None,
            },
            encoder_attention_mask=arrays["in/mask"].reshape(len(arrays["in/x"]), -1),
        ).sample
    np.testing.assert_allclose(output, arrays["out/eps_sigma"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "case,hint,cleaning,sampler",
    [
        ("alpha_single_scale", ["--family=alpha"], "alpha", "dpm-solver-alpha"),
        ("alpha_multi_scale", [], "alpha", "dpm-solver-alpha"),
        ("sigma_plain", ["--family=sigma"], "sigma", "dpm-solver"),
        ("dit", [], "none", "iddpm"),
    ],
)
def test_how_the_authors_use_their_weights(case, hint, cleaning, sampler, tmp_path, capsys):
    """Is in model.json, which is refused where it says what nobody knows."""
    convert(GOLDEN / f"{case}.pth", tmp_path / "model", "--num-heads=2", *hint)
    stored = read_stored_model(tmp_path / "model")
    assert (stored.caption_cleaning, stored.sampler) == (cleaning, sampler)
    path = tmp_path / "model/model.json"
    text = path.read_text()
    for name, value in (("caption_cleaning", cleaning), ("sampler", sampler)):
        path.write_text(text.replace(f'"{name}": "{value}"', f'"{name}": "other"'))
        assert main([str(tmp_path / "model"), str(tmp_path / "x.pth"), "--to=pixart"]) == 2
        assert f"model.json: {name} = 'other' must be one of " in capsys.readouterr().err


def test_our_format_restores_as_jax_arrays(sigma):
    """Onto any mesh, equal to the direct conversion of the same file."""
    stored = read_stored_model(sigma)
    params = restore_params(sigma, abstract_params(stored.model, make_mesh()))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    wanted = load_params(stored.model, load_state_dict("sigma_plain"))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    lazy = StoredParams(sigma / "params", stored.model)
    flat = flax.traverse_util.flatten_dict(wanted, sep="/")
    assert lazy.keys() == flat.keys()
    np.testing.assert_array_equal(lazy["blocks_0/attn/qkv/kernel"], flat["blocks_0/attn/qkv/kernel"])


def test_the_weights_that_are_asked_for(tmp_path):
    checkpoint = load_torch(GOLDEN / "sigma_plain.pth")
    averaged = {name: tensor + (name != "pos_embed") for name, tensor in checkpoint["state_dict"].items()}
    torch.save(checkpoint | {"state_dict_ema": averaged}, tmp_path / "x.pth")
    for flag, added in (("--ema", 1), ("--no-ema", 0)):
        convert(tmp_path / "x.pth", tmp_path / flag, *SMALL, flag)
        stored = read_stored_model(tmp_path / flag)
        bias = StoredParams(tmp_path / flag / "params", stored.model)["t_block/bias"]
        np.testing.assert_array_equal(bias, checkpoint["state_dict"]["t_block.1.bias"] + added)
        assert stored.provenance["weights"] == ("state_dict_ema" if added else "state_dict")


def test_a_training_run_goes_out(tmp_path):
    """From its newest checkpoint to .pth and diffusers."""
    config = tiny_config(write_data(tmp_path / "data"))
    run = tmp_path / "run"
    copy_encoders(tmp_path / "data", read_manifest(tmp_path / "data"), run / ENCODERS)
    record_config(run, config)
    state, _ = Program(config, make_mesh()).birth.fresh()
    state = dataclasses.replace(state, ema_params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    checkpoints = Checkpoints(run)
    checkpoints.save(state, {})
    checkpoints.close()
    convert(run, tmp_path / "transformer", "--to=diffusers")
    PixArtTransformer2DModel.from_pretrained(tmp_path / "transformer")
    for flag, item in (("--ema", state.ema_params), ("--no-ema", state.params)):
        convert(run, tmp_path / f"{flag}.pth", "--to=pixart", flag)
        convert(tmp_path / f"{flag}.pth", tmp_path / flag, "--num-heads=2", "--family=alpha")
        stored = read_stored_model(tmp_path / flag)
        assert (stored.position_base, stored.position_scale) == (position_base(config), config.model.position_scale)
        params = restore_params(tmp_path / flag, abstract_params(stored.model, make_mesh()))
        jax.tree.map(np.testing.assert_array_equal, params, item)


def test_the_null_caption_that_diffusers_does_not_keep(tmp_path, capsys):
    """Is NaN and said to be missing, stays out of a .pth, and can be given."""
    make_transformer(**SIGMA).save_pretrained(tmp_path / "transformer")
    convert(tmp_path / "transformer", tmp_path / "model", "--family=sigma")
    assert "no null caption" in capsys.readouterr().out
    stored = read_stored_model(tmp_path / "model")
    assert stored.null_text == "missing"
    assert np.isnan(StoredParams(tmp_path / "model" / "params", stored.model)["y_embedder/y_embedding"]).all()
    convert(tmp_path / "model", tmp_path / "x.pth", "--to=pixart")
    assert "y_embedder.y_embedding" not in load_torch(tmp_path / "x.pth")["state_dict"]
    convert(tmp_path / "x.pth", tmp_path / "again", "--num-heads=5", "--family=sigma")
    assert read_stored_model(tmp_path / "again").null_text == "missing"

    features = np.random.default_rng(0).standard_normal((300, 20), np.float32)
    np.save(tmp_path / "null.npy", features)
    torch.save({"uncond_prompt_embeds": torch.from_numpy(features[None])}, tmp_path / "null.pth")
    for name in ("null.npy", "null.pth"):
        convert(tmp_path / "model", tmp_path / f"with-{name}", "--null-text", tmp_path / name)
        stored = read_stored_model(tmp_path / f"with-{name}")
        assert stored.null_text == "stored"
        found = StoredParams(tmp_path / f"with-{name}" / "params", stored.model)["y_embedder/y_embedding"]
        np.testing.assert_array_equal(found, features)


@pytest.mark.parametrize("writer", [write_orbax, write_pixart, write_diffusers])
def test_the_model_is_never_in_memory_twice(writer, tmp_path):
    """By what numpy allocates. The process's own memory with XL/2: 1.0 times the model to our format, 1.25 from it."""
    config = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 12, "caption_channels": 64}
    config |= {"use_additional_conditions": False}
    make_transformer(**config, cross_attention_dim=256).save_pretrained(tmp_path / "transformer")
    source = open_source(tmp_path / "transformer")
    parameter_shapes(load_weights(source, Hints(family="alpha")).stored.model)  # Whatever jax allocates once.
    size = (tmp_path / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
    tracemalloc.start()
    writer(tmp_path / "target", load_weights(source, Hints(family="alpha")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 40e6 and peak < 1.5 * size


def changed(**changes):
    """sigma_plain with tensors added, replaced, or (None) left out; __ in a keyword is a dot."""

    def write(folder):
        state_dict = load_torch(GOLDEN / "sigma_plain.pth")["state_dict"]
        for name, tensor in changes.items():
            if tensor is None:
                del state_dict[name.replace("__", ".")]
            else:
                state_dict[name.replace("__", ".")] = tensor
        torch.save({"state_dict": state_dict}, folder / "x.pth")
        return folder / "x.pth"

    return write


def diffusers_without(name):
    def write(folder):
        make_transformer(**SIGMA).save_pretrained(folder / "x")
        path = folder / "x/diffusion_pytorch_model.safetensors"
        arrays = safetensors.numpy.load_file(path)
        del arrays[name]
        safetensors.numpy.save_file(arrays, path)
        return folder / "x"

    return write


def truncated(folder):
    make_transformer(**SIGMA).save_pretrained(folder / "x")
    path = folder / "x/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return folder / "x"


def other_architecture(folder):
    safetensors.numpy.save_file({"conv_in.weight": np.zeros((3, 3))}, folder / "x.safetensors")
    return folder / "x.safetensors"


def damaged(change):
    """A model of ours, damaged."""

    def write(folder):
        convert(GOLDEN / "sigma_plain.pth", folder / "x", *SMALL)
        change(folder / "x")
        return folder / "x"

    return write


def another_depth(model):
    text = (model / "model.json").read_text()
    (model / "model.json").write_text(text.replace('"depth": 3', '"depth": 4'))


def undescribed(model):
    for name in ("_METADATA", "checksums.json"):
        (model / "params" / name).unlink()


def cut_the_arrays(model):
    """Takes half of the file that Orbax keeps the arrays in."""
    path = max((model / "params").glob("*/0*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "source,message",
    [
        (changed(t_block__1__bias=None), r"not filled: t_block/bias \(144,\)"),
        (changed(mystery=torch.zeros(3)), "no parameter takes: mystery"),
        (changed(t_block__1__bias=torch.zeros(7)), r"wrong shape: t_block/bias is \(7,\), the model has \(144,\)"),
        (changed(t_block__1__weight=torch.zeros(7)), r"wrong shape: t_block/kernel is \(7,\)"),
        (changed(x_embedder__proj__weight=None), r"x_embedder\.proj\.weight is missing"),
        (
            changed(blocks__1__mlp__fc1__bias=None),
            r"incomplete: blocks_0/mlp/fc1/bias is there only for blocks \[0, 2\]",
        ),
        (changed(pos_embed=None), "pass --resolution and --position-scale"),
        (
            diffusers_without("transformer_blocks.1.attn1.to_k.weight"),
            r"incomplete: blocks_0/attn/qkv/kernel lacks transformer_blocks\.1\.attn1\.to_k\.weight",
        ),
        (truncated, r"diffusion_pytorch_model\.safetensors is damaged"),
        (other_architecture, r"x\.safetensors holds neither a PixArt nor a DiT"),
        (lambda folder: folder / "nothing.pth", r"nothing\.pth: no such file or folder"),
        (damaged(another_depth), r"holds another model than its model\.json"),
        (damaged(undescribed), "params is no Orbax checkpoint, or a damaged"),
        # Whichever array is the largest.
        (damaged(cut_the_arrays), r"/x/params: \w+(/\w+)+ is damaged: "),
    ],
)
def test_what_does_not_fit_is_one_error(source, message, tmp_path, capsys):
    path = source(tmp_path)
    before = sorted(tmp_path.iterdir())
    hints = [] if (path / "model.json").exists() else SMALL
    capsys.readouterr()
    assert main([str(path), str(tmp_path / "target"), *hints, "--to=pixart"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1 and re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


def test_all_that_does_not_fit_is_listed_at_once(tmp_path, capsys):
    path = changed(t_block__1__bias=None, mystery=torch.zeros(3), final_layer__linear__bias=torch.zeros(1))(tmp_path)
    assert main([str(path), str(tmp_path / "target"), *SMALL]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("x.pth", "t_block/bias", "mystery", "final_layer/linear/bias"))


@pytest.mark.parametrize(
    "target,message", [("there", "exists already"), ("there/below/target", "cannot be written: .*Not a directory")]
)
def test_a_target_that_cannot_be(target, message, tmp_path, capsys):
    (tmp_path / "there").write_text("kept")
    assert main([str(GOLDEN / "sigma_plain.pth"), str(tmp_path / target), *SMALL]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "there").read_text() == "kept" and os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("case,part", [("sigma_kv_compress_qk_norm", "blocks_2/attn/sr_kernel"), ("dit", "adaLN")])
def test_what_diffusers_does_not_have_is_refused(case, part, tmp_path, capsys):
    source, target = GOLDEN / f"{case}.pth", tmp_path / "new/target"
    assert main([str(source), str(target), *SMALL, "--to=diffusers"]) == 2
    assert part in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_killed_run_leaves_nothing_in_the_way(sigma, tmp_path):
    (tmp_path / ".x.pth.incomplete").write_text("half")
    convert(sigma, tmp_path / "x.pth", "--to=pixart")
    assert os.listdir(tmp_path) == ["x.pth"]


def test_model_json_names_no_machine(sigma):
    text = (sigma / "model.json").read_text()
    assert str(GOLDEN) not in text and json.loads(text)["provenance"]["source"] == "sigma_plain.pth"
    assert load_config("sigma_plain")["depth"] == json.loads(text)["model"]["depth"]
