"""A PixArt with its ControlNet becomes one directory and goes back bit for bit; what is no such thing is one error."""

import json
import os

import flax
import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, build_model, load_arrays, load_config, load_params, load_state_dict
from models.test_controlnet import BASE_STATE, controlled, golden_params, inputs, to_nchw

from pixart_jax.conversion.control import open_control
from pixart_jax.conversion.stored import StoredParams, read_stored_model
from tools.convert import main

CASE = "alpha_controlnet"
SOURCE = GOLDEN / f"{CASE}.pth"


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1 and not os.path.exists(arguments[1])
    return error


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("control") / "model"
    convert(SOURCE, path, "--num-heads=2")
    return path


def unflatten(arrays):
    return flax.traverse_util.unflatten_dict(dict(arrays), sep="/")


def test_becomes_one_directory(model):
    assert sorted(os.listdir(model)) == ["controlnet", "model.json", "params"]
    assert sorted(os.listdir(model / "controlnet")) == ["controlnet.json", "params"]
    assert json.loads((model / "controlnet/controlnet.json").read_text()) == {"format_version": 1, "num_copies": 3}
    stored = read_stored_model(model)
    # By its micro-conditions, though captions are of 12 tokens.
    assert (stored.caption_cleaning, stored.latent_scale, stored.null_text) == ("alpha", 0.18215, "stored")
    assert stored.provenance == {"source": f"{CASE}.pth", "format": "controlnet", "weights": "state_dict"}
    control = open_control(model, stored.model)
    base = unflatten(StoredParams(model / "params", stored.model))
    params = unflatten((path, control.read(path)) for path in control.paths)
    # Equal to the conversion that is checked against the reference; and it computes the reference's numbers itself.
    wanted_base, wanted = load_params(build_model(load_config(CASE)), BASE_STATE), golden_params()
    for found, expected in ((base, wanted_base), (params, wanted)):
        found, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
        assert found.keys() == expected.keys()
        for path, array in expected.items():
            np.testing.assert_array_equal(found[path], array, err_msg=path)
    output = controlled(base, params, *inputs())
    expected = load_arrays(CASE)["out/eps_sigma"]
    parts = [to_nchw(part, load_config(CASE), expected.shape) for part in output]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("by_way_of", ["a directory", "a copy of it", "nothing"])
def test_comes_back(by_way_of, model, tmp_path):
    source = SOURCE if by_way_of == "nothing" else model
    if by_way_of == "a copy of it":
        convert(model, tmp_path / "copy")
        source = tmp_path / "copy"
    convert(source, tmp_path / "again.pth", "--to=pixart", *(["--num-heads=2"] if by_way_of == "nothing" else []))
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (SOURCE, tmp_path / "again.pth"))
    assert before.keys() == after.keys() and len(before) == 153
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and after[name].is_contiguous()
        assert torch.equal(after[name], tensor), name


def test_is_said_and_has_no_place_in_diffusers(model, tmp_path, capsys):
    convert(SOURCE, tmp_path / "model", "--num-heads=2")
    output = capsys.readouterr().out
    assert "a PixArt with a ControlNet" in output and "; a ControlNet of 3 copied blocks" in output
    for source, hints in ((SOURCE, ["--num-heads=2"]), (model, [])):
        assert "diffusers has no ControlNet for PixArt" in refused(
            capsys, source, tmp_path / "x", "--to=diffusers", *hints
        )


def test_a_null_caption_can_be_given(tmp_path):
    null_text = np.random.default_rng(0).standard_normal((12, 16), np.float32)
    np.save(tmp_path / "null.npy", null_text)
    convert(SOURCE, tmp_path / "x.pth", "--num-heads=2", "--to=pixart", "--null-text", tmp_path / "null.npy")
    state_dict = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    np.testing.assert_array_equal(state_dict["base_model.y_embedder.y_embedding"], null_text)
    assert len(state_dict) == 153


def rewritten(change):
    def write(folder):
        state_dict = dict(load_state_dict(CASE))
        change(state_dict)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}
        torch.save({"state_dict": tensors}, folder / "x.pth")
        return folder / "x.pth"

    return write


def without(*prefixes):
    def change(state_dict):
        for name in [name for name in state_dict if name.startswith(prefixes)]:
            del state_dict[name]

    return rewritten(change)


def with_copies(count):
    """As many copied blocks, all like the first."""

    def change(state_dict):
        for name in [name for name in state_dict if name.startswith("controlnet.0.") and "before" not in name]:
            for i in range(count):
                state_dict[name.replace(".0.", f".{i}.", 1)] = state_dict[name]

    return rewritten(change)


def damaged(text):
    """A directory of ours with another controlnet.json."""

    def write(folder):
        convert(SOURCE, folder / "x", "--num-heads=2")
        (folder / "x/controlnet/controlnet.json").write_text(text)
        return folder / "x"

    return write


@pytest.mark.parametrize(
    "source,message",
    [
        (without("base_model."), "x.pth holds a ControlNet's checkpoint without the base model; give the whole file"),
        (without("controlnet."), "x.pth holds a ControlNet's checkpoint without the ControlNet; give the whole file"),
        (rewritten(lambda s: s.update(odd=np.zeros(1))), "x.pth: not a ControlNet checkpoint: these keys begin"),
        (
            rewritten(lambda s: s.update({"controlnet.1.odd": np.zeros(1)})),
            "x.pth: the checkpoint does not fit the model:\n  no parameter takes: 1.odd",
        ),
        (
            without("controlnet.1.after_proj.bias"),
            "x.pth: the checkpoint does not fit the model:\n  incomplete: copies/after_proj/bias is there only for "
            "blocks [0, 2]",
        ),
        (without("base_model.t_block.1.bias"), "x.pth: the checkpoint does not fit the model:\n  not filled: t_block"),
        (with_copies(5), "x.pth: a ControlNet of 5 copied blocks; this model can have 1 to 4"),
        (damaged('{"format_version": 1}'), "controlnet.json is damaged, or of another format_version"),
        (damaged('{"format_version": 2, "num_copies": 3}'), "controlnet.json is damaged, or of another format_version"),
        (damaged('{"format_version": 1, "num_copies": 5}'), "controlnet.json: a ControlNet of 5 copied blocks"),
        (damaged('{"format_version": 1, "num_copies": 2}'), "controlnet/params holds another model than its"),
    ],
)
def test_what_does_not_fit_is_one_error(source, message, tmp_path, capsys):
    path = source(tmp_path)
    before = sorted(tmp_path.iterdir())
    hints = [] if path.is_dir() else ["--num-heads=2"]
    assert message in refused(capsys, path, tmp_path / "target", *hints)
    assert sorted(tmp_path.iterdir()) == before
