"""Checkpoints as trainers and other programs wrap them: the same weights as without the wrapping, which is named."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from conversion.test_diffusers import SIGMA, make_transformer
from golden_cases import GOLDEN
from models.t5_cases import TINY, reference_model

from pixart_jax.conversion.encoders import open_encoder
from pixart_jax.conversion.sources import open_source
from pixart_jax.errors import InputError
from tools.convert import main

COMFY = {"first_stage_model.decoder.x": torch.zeros(3), "text_encoders.t5xxl.x": torch.zeros(3, dtype=torch.int8)}
OPTIONS = ["--num-heads=2", "--family=sigma"]


def state_dict(name="sigma_plain.pth"):
    found = torch.load(GOLDEN / name)
    return found.get("state_dict", found)


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def params_of(folder):
    from pixart_jax.conversion.stored import StoredParams, read_stored_model

    return StoredParams(folder / "params", read_stored_model(folder).model).read_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    assert main([str(GOLDEN / "sigma_plain.pth"), str(folder), *OPTIONS]) == 0
    return params_of(folder)


@pytest.mark.parametrize(
    "prefix,suffix,wrap",
    [
        ("module.", "pth", lambda tensors: tensors),
        ("_orig_mod.", "pth", lambda tensors: {"state_dict": tensors, "epoch": np.int64(3)}),
        ("model.", "pth", lambda tensors: {"model_state_dict": tensors}),
        ("", "pth", lambda tensors: {"module": tensors, "optimizer": None}),
        ("", "pth", lambda tensors: {"model_state_dict": tensors, "loss": np.float64(1)}),
        ("module._orig_mod.", "pth", lambda tensors: {"model": {"state_dict": tensors}}),
        ("transformer.", "safetensors", lambda tensors: tensors | {"vae.quant_conv.bias": torch.zeros(3)}),
        ("model.diffusion_model.", "safetensors", lambda tensors: tensors),
        ("diffusion_model.", "safetensors", lambda tensors: tensors),
        (
            "model.diffusion_model.",
            "safetensors",
            lambda tensors: tensors | COMFY,
        ),
    ],
)  # fmt: skip
def test_a_wrapped_checkpoint_is_the_checkpoint(prefix, suffix, wrap, whole, tmp_path, capsys):
    value, path = wrap(prefixed(prefix, state_dict())), tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save(value, path)
    else:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in value.items()}, path)
    assert main([str(path), str(tmp_path / "model"), *OPTIONS]) == 0
    said = capsys.readouterr().out
    assert (f"{prefix} stripped from its names" in said) == bool(prefix)
    left_out = [name for name in value if "diffusion_model" in prefix and not name.startswith(prefix)]
    assert (f"{len(left_out)} arrays of first_stage_model, text_encoders left out" in said) == bool(left_out)
    ours = params_of(tmp_path / "model")
    for name in whole | ours:
        np.testing.assert_array_equal(ours[name], whole[name])


@pytest.mark.parametrize("prefix", ["module.", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["dit.pth", "alpha_multi_scale.pth", "alpha_controlnet.pth"])
def test_of_every_format(name, prefix, tmp_path):
    found = state_dict(name)
    torch.save(found, tmp_path / "plain.pth")
    torch.save(prefixed(prefix, found), tmp_path / "x.pth")
    ours, plain = open_source(tmp_path / "x.pth"), open_source(tmp_path / "plain.pth")
    assert (ours.format.name, ours.shapes) == (plain.format.name, plain.shapes)


def test_a_diffusers_transformer_and_a_t5(tmp_path):
    make_transformer(**SIGMA).save_pretrained(tmp_path / "transformer")
    reference_model(TINY).save_pretrained(tmp_path / "t5")
    for folder, file in (("transformer", "diffusion_pytorch_model"), ("t5", "model")):
        path = tmp_path / folder / f"{file}.safetensors"
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file(prefixed("_orig_mod.module.", tensors), path)
        if folder == "t5":
            arrays = open_encoder(tmp_path / folder, "text_encoder").arrays
        else:
            arrays = open_source(tmp_path / folder).arrays
        assert set(arrays) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(arrays[name], tensor)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda t: prefixed("module.", t) | {"mystery": torch.ones(1)}, r"names begin with module\., but .*: mystery"),
        (lambda t: prefixed("model.", t) | prefixed("teacher.", t), r"several models, under model\., teacher\."),
        (lambda t: {"model_state_dict": prefixed("a.", t) | prefixed("b.c.", t)}, r"several models, under a\., b\.c\."),
        (lambda t: {"state_dict": {"state_dict": {"state_dict": {"state_dict": t}}}}, "holds no state dict"),
        (lambda t: {"weights": {"layers": t}}, "holds no state dict: .*weights"),
    ],
)
def test_what_is_not_wrapped_in_one_way_is_refused(change, message, tmp_path):
    torch.save(change(state_dict()), tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "ema,value,taken",
    [
        (None, ("model_state_dict", "ema_state_dict"), "model_state_dict"),
        (True, ("model_state_dict", "ema_state_dict"), "ema_state_dict"),
        (True, ("model_state_dict", "ema_model_state_dict"), "ema_model_state_dict"),
        (False, ("model_state_dict", "ema_model_state_dict"), "model_state_dict"),
    ],
)
def test_which_of_several_weights(ema, value, taken, tmp_path):
    sets = {name: {"module.t_block.1.weight": torch.full((2, 1), float(i))} for i, name in enumerate(value)}
    torch.save(sets, tmp_path / "x.pth")
    source = open_source(tmp_path / "x.pth", ema=ema)
    assert source.weights == taken
    assert source.arrays["t_block.1.weight"][0, 0] == value.index(taken)


def test_provenance_says_where_weights_come_from(tmp_path):
    torch.save({"model_state_dict": prefixed("module.", state_dict())}, tmp_path / "x.pth")
    assert main([str(tmp_path / "x.pth"), str(tmp_path / "model"), *OPTIONS]) == 0
    assert json.loads((tmp_path / "model/model.json").read_text())["provenance"]["weights"] == "model_state_dict"
